"""Merging into a run of its own, weighted sums, and stacks."""

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import mtplug
from mtplug import testing
from mtplug.adapters import folder_of, with_adapters
from mtplug.cli import peft as cli
from mtplug.errors import UserError
from mtplug.peft import files
from mtplug.peft.combine import merge
from tests.peft.material import BATCH

TEXTS = ["ka lo mi", "we so ti ra", "nu pe", "vu"]
METHODS = {
    "lora": "{name: lora, rank: 3, targets: [embedding, self, ffn]}",
    "other": "{name: lora, rank: 2, rslora: true, targets: [embedding, self.q, cross]}",
    "attention": "{name: lora, rank: 2, targets: [self.q]}",
    "dora": "{name: lora, dora: true, rank: 2}",
    "lora_xs": "{name: lora_xs, share: 0.2}",
    "ia3": "ia3",
    "ia3b": "ia3",
    "norms": "{name: select, targets: [norm]}",
    "normsb": "{name: select, targets: [norm]}",
    "prefix": "{name: prefix_tuning, length: 3}",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return testing.train(tmp_path_factory.mktemp("combine"), updates=60, name="base")


@pytest.fixture(scope="module")
def runs(base):
    here = f"training.finetune_from={base}"
    return {
        name: testing.train(
            base.parent,
            here,
            f"peft={method}",
            "optimizer.lr=3e-2",
            f"seed={n}",
            updates=4,
            name=name,
        )
        for n, (name, method) in enumerate(METHODS.items())
    }


def logits(model):
    b = BATCH
    return (
        model.double()
        .project(model(b.source_tokens, b.source_lengths, b.prev_output_tokens))
        .detach()
    )


def model_of(base, *paths):
    return with_adapters(mtplug.load(base).model, [folder_of(p) for p in paths])


def run(*args):
    return cli.main([str(a) for a in args])


@pytest.mark.parametrize("name", ["lora", "dora", "lora_xs", "ia3", "norms"])
def test_a_merged_run_translates_as_base_and_adapter_do_and_needs_neither(
    base, runs, tmp_path, name, capsys
):
    out = tmp_path / "merged"
    assert run("merge", runs[name], "--output", out) == 0
    assert "differ by at most" in capsys.readouterr().out
    hidden = base.rename(base.with_name("hidden"))
    try:
        torch.testing.assert_close(
            logits(mtplug.load(out).model), logits(model_of(hidden, runs[name])), rtol=0, atol=2e-5
        )
        assert mtplug.load(out).translate(TEXTS)
    finally:
        hidden.rename(base)
    # it can be the base of another run
    again = testing.train(
        base.parent, f"training.finetune_from={out}", "peft=bitfit", updates=1, name=f"on-{name}"
    )
    assert (again / "checkpoints" / "last" / files.WEIGHTS).is_file()


@pytest.mark.parametrize("path", [".", "checkpoints/last"])
def test_a_run_with_a_method_and_no_base_merges_into_itself(base, tmp_path, capsys, path):
    """Its checkpoints hold all weights, those that LoRA left as they were too. It could be exported and fine-tuned by
    messages that led to `merge`, which called it no adapter."""
    given = (f"training.init_from={base}", f"tokenizer.model={base}", "peft={name: lora, rank: 2}")
    adapted = testing.train(tmp_path, *given, "optimizer.lr=3e-2", updates=4)
    assert run("merge", adapted / path, "--output", tmp_path / "merged") == 0
    whole = mtplug.load(tmp_path / "merged").model
    assert whole.state_dict().keys() == mtplug.load(base).model.state_dict().keys()
    wanted = logits(mtplug.load(adapted).model)
    torch.testing.assert_close(logits(whole), wanted, rtol=0, atol=2e-5)
    assert (logits(mtplug.load(base).model) - wanted).abs().max() > 0.1
    on = testing.train(
        tmp_path, f"training.finetune_from={tmp_path / 'merged'}", updates=1, name="on"
    )
    assert (on / "checkpoints" / "last").is_dir()


def test_training_does_not_start_anew_over_weights_that_a_merge_wrote(base, runs, tmp_path, capsys):
    """Found by a user who went on with a merged run: it was trained from random weights, and `best` led to these."""
    from mtplug.cli import train

    out = tmp_path / "merged"
    assert run("merge", runs["lora"], "--output", out) == 0
    before = (out / "checkpoints" / "best").readlink()
    assert train.main([str(out / "config.yaml"), f"run_dir={out}"]) == 2
    assert f"set training.finetune_from={out} and another run_dir" in capsys.readouterr().err
    assert (out / "checkpoints" / "best").readlink() == before and not (
        out / "metrics.jsonl"
    ).exists()


def test_stacked_adapters_merge_together(base, runs, tmp_path):
    assert run("merge", runs["lora"], runs["ia3"], "--output", tmp_path / "both") == 0
    both = logits(mtplug.load(tmp_path / "both").model)
    torch.testing.assert_close(
        both, logits(model_of(base, runs["lora"], runs["ia3"])), rtol=0, atol=2e-5
    )


def test_weighted_sum_of_lora_adds_the_changes_of_the_weights(base, runs, tmp_path):
    out = tmp_path / "sum"
    assert run("combine", f"{runs['lora']}=0.7", f"{runs['other']}=-0.4", "--output", out) == 0
    plain = {n: t.double() for n, t in mtplug.load(base).model.state_dict().items()}
    one, two = (merge(model_of(base, runs[n]).double()).state_dict() for n in ("lora", "other"))
    both = merge(model_of(base, out).double()).state_dict()
    for name, tensor in plain.items():
        truth = tensor + 0.7 * (one[name] - tensor) - 0.4 * (two[name] - tensor)
        torch.testing.assert_close(both[name], truth, rtol=0, atol=1e-6)


def test_a_sum_describes_all_that_it_changes(base, runs, tmp_path):
    """The first one of these has no table, the second one's is tied to the output."""
    out = tmp_path / "sum"
    assert run("combine", f"{runs['attention']}=1", f"{runs['lora']}=1", "--output", out) == 0
    described, tensors = files.read_config(out), load_file(out / files.WEIGHTS)
    parts = [files.read_config(folder_of(runs[n])) for n in ("attention", "lora")]
    assert described["target_modules"] == sorted({m for p in parts for m in p["target_modules"]})
    assert described["target_modules"] == sorted(
        {n.removeprefix(files.PREFIX).rpartition(".lora_")[0] for n in tensors}
    )
    assert "output" in described["target_modules"]


def test_adapters_on_an_adapter_have_a_sum(base, runs, tmp_path):
    out = tmp_path / "sum"
    upper = [
        testing.train(
            base.parent, f"training.finetune_from={runs['lora']}", "peft={name: lora, rank: 1}",
            "optimizer.lr=3e-2", f"seed={n}", updates=3, name=f"upper-{n}",
        )
        for n in (1, 2)
    ]  # fmt: skip
    assert run("combine", f"{upper[0]}=0.5", f"{upper[1]}=2", "--output", out) == 0
    lower = merge(model_of(base, runs["lora"]).double()).state_dict()
    one, two, both = (
        merge(model_of(base, runs["lora"], part).double()).state_dict() for part in (*upper, out)
    )
    for name, tensor in lower.items():
        truth = tensor + 0.5 * (one[name] - tensor) + 2 * (two[name] - tensor)
        torch.testing.assert_close(both[name], truth, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pair", [("ia3", "ia3b"), ("norms", "normsb")])
def test_weighted_sum_of_others_is_that_of_how_far_their_parameters_went(
    base, runs, tmp_path, pair
):
    out = tmp_path / "sum"
    assert run("combine", *(f"{runs[n]}=0.5" for n in pair), "--output", out) == 0
    one, two, both = (files.read(folder_of(p)) for p in (runs[pair[0]], runs[pair[1]], out))
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)
    alone = tmp_path / "alone"
    assert run("combine", f"{runs[pair[0]]}=0", "--output", alone) == 0
    torch.testing.assert_close(logits(model_of(base, alone)), logits(mtplug.load(base).model))


@pytest.mark.parametrize(("args", "said"), [
    (("merge", "prefix"), "cannot be merged"),
    (("combine", "lora=1", "ia3=1"), "only adapters of one method have a sum"),
    (("combine", "dora=1"), "DoRA have no sum"),
    (("combine", "lora"), "expected PATH=WEIGHT"),
    (("combine", "lora=nan"), "/lora=nan': expected PATH=WEIGHT, such as LORA=0.5"),
    (("merge", "base"), "holds no adapter"),
])  # fmt: skip
def test_what_cannot_be_done_is_said(base, runs, tmp_path, capsys, args, said):
    def path(text):
        name, equals, weight = text.partition("=")
        return f"{ {**runs, 'base': base}[name] }{equals}{weight}"

    assert run(args[0], *map(path, args[1:]), "--output", tmp_path / "out") == 2
    assert said.replace("LORA", str(runs["lora"])) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_base_can_be_given_and_another_one_is_refused(base, runs, tmp_path, capsys):
    other = testing.train(base.parent, "seed=9", updates=2, name="another")
    assert run("merge", runs["lora"], "--base", other, "--output", tmp_path / "x") == 2
    assert f"was made on another base than {other}: fingerprint" in capsys.readouterr().err
    with pytest.raises(UserError):
        model_of(other, runs["lora"])


@pytest.mark.parametrize("args", [("merge", "{}"), ("combine", "{}=1")])
def test_a_full_disk_leaves_nothing_so_that_the_same_command_can_follow(
    runs, tmp_path, capsys, monkeypatch, args
):
    def full(*args, **kwargs):
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    line = [args[0], args[1].format(runs["lora"]), "--output", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        patch.setattr("mtplug.training.checkpoints.save_tensors", full)
        assert run(*line) == 1
    error = capsys.readouterr().err
    assert "free some" in error and "run the same command again" in error
    assert not list(tmp_path.iterdir())
    assert run(*line) == 0
