"""The attention suite runs where there is no GPU, and says what it left out."""

import json

import pytest

from mtplug.bench.attention import _Size
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
