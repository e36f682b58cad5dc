"""The attention suite runs where there is no GPU, and says what it left out."""

import json

import pytest

from mtplug.bench.attention import AttentionSuite, AttentionSuiteConfig, _Size
from mtplug.cli import bench


def test_operations_are_counted_as_flash_attention_does():
    # 4 N^2 D a head: two products of N x D by D x N, a multiplication and an addition each.
    full, causal = (_Size(1024, 64, c, heads=8) for c in (False, True))
    assert full.flops(training=False) == 8 * 2 * (2 * 1024 * 1024 * 64)
    # Backward computes the scores again and has four more products: five of them, 10 N^2 D.
    assert full.flops(training=True) == 8 * 7 * (2 * 1024 * 1024 * 64)
    assert causal.flops(training=True) * 2 == full.flops(training=True)


def test_suite_runs_on_a_cpu_and_says_what_it_left_out(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "rows.json", tmp_path / "rows.png"
    settings = [
        "device=cpu",
        "lengths=[32]",
        "sizes=[8]",
        "rounds=3",
        "workers=1",
        "schemes=[none,t5_bias,shaw]",
    ]
    assert (
        bench.main(["run", "attention", *settings, "--output", str(out), "--plot", str(plot)]) == 0
    )
    whole = json.loads(out.read_text())
    found = {(r["side"], r["scheme"], r["causal"], r["pass"]) for r in whole["rows"]}
    both = [(c, p) for c in (False, True) for p in ("forward", "training")]
    for scheme in ("none", "t5_bias", "shaw"):
        assert {("sdpa", scheme, *rest) for rest in both} <= found
        assert ("flex", scheme, False, "forward") in found
    assert all(
        r["of plain"] == 1.0 for r in whole["rows"] if r["side"] == "sdpa" and r["scheme"] == "none"
    )
    told = "\n".join(whole["left_out"])
    assert "triton (none, t5_bias, shaw): needs a GPU" in told
    assert "flex (none, t5_bias, shaw): FlexAttention has no backward pass on CPUs" in told
    assert "left out: triton" in capsys.readouterr().out
    assert whole["conditions"]["dtype"] == "float32"
    assert whole["conditions"]["TFLOP/s"].startswith("of all pairs of positions")
    assert {r["rounds"] for r in whole["rows"]} == {3}
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_unknown_scheme_is_named(capsys):
    assert bench.main(["run", "attention", "schemes=[t5]"]) == 2
    assert "schemes: 't5' is none of none, t5_bias" in capsys.readouterr().err


def test_what_is_too_slow_is_not_tried_at_greater_lengths(tmp_path):
    out = tmp_path / "rows.json"
    settings = ["lengths=[16,32]", "sizes=[8]", "schemes=[none]", "sides=[sdpa]", "seconds=0"]
    settings += ["device=cpu", "causal=[false]"]
    assert bench.main(["run", "attention", *settings, "--output", str(out)]) == 0
    whole = json.loads(out.read_text())
    assert [(r["N"], r["pass"]) for r in whole["rows"]] == [(16, "forward"), (16, "training")]
    assert whole["left_out"] == ["sdpa (none): N=16, D=8: took 0 s; not tried beyond"]


ONE_SIDE = ["device=cpu", "causal=[false]", "passes=[forward]", "sides=[sdpa]", "rounds=3"]


def test_a_size_that_a_scheme_cannot_have_is_left_out(tmp_path):
    out = tmp_path / "rows.json"
    settings = ["lengths=[16]", "sizes=[7,8]", "schemes=[none,rope]", *ONE_SIDE]
    assert bench.main(["run", "attention", *settings, "--output", str(out)]) == 0
    whole = json.loads(out.read_text())
    found = [(r["D"], r["scheme"]) for r in whole["rows"]]
    assert found == [(7, "none"), (8, "none"), (8, "rope")]
    (told,) = whole["left_out"]
    assert told.startswith("sdpa (rope): N=16, D=7: ValueError: Rotary dim must be even")


def test_rows_before_an_interrupt_are_kept(tmp_path, monkeypatch, capsys):
    measure = AttentionSuite._measure

    def interrupted(self, shape, training):
        if shape.length == 32:
            raise KeyboardInterrupt
        return measure(self, shape, training)

    monkeypatch.setattr(AttentionSuite, "_measure", interrupted)
    out = tmp_path / "rows.json"
    settings = ["sizes=[8]", "schemes=[none]", *ONE_SIDE, "--output", str(out)]
    assert bench.main(["run", "attention", "lengths=[16,32,64]", *settings]) == 130
    whole = json.loads(out.read_text())
    assert [r["N"] for r in whole["rows"]] == [16]
    assert whole["left_out"] == ["stopped at N=32, D=8, causal=False, forward"]
    out.unlink()
    assert bench.main(["run", "attention", "lengths=[32]", *settings]) == 130
    assert capsys.readouterr().err == "mtplug-bench: stopped\n" and not out.exists()


def test_tflops_have_three_digits_however_few_they_are():
    suite = AttentionSuite(AttentionSuiteConfig(device="cpu"))
    shape = _Size(1000, 10, causal=False, heads=1)  # 4e7 operations
    for seconds, wanted in ((3.0, 1.33e-5), (3e-5, 1.33), (3e-8, 1330.0)):
        row = suite._row(shape, False, ("sdpa", "none"), [seconds] * 3, 0, [])
        assert row["TFLOP/s"] == wanted
