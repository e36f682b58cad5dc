"""What a run is said to need, against counts by hand and against the run itself."""

import pytest
import torch

from mtplug.cli.train import main
from mtplug.criteria import Loss
from mtplug.errors import MtplugError
from mtplug.training.estimate import _activations, estimate
from mtplug.training.trackers import read_events
from mtplug.training.units import duration
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    tiny.write_corpus(tmp_path)
    return tmp_path


def estimated(folder, *overrides):
    lines = []
    trainer = tiny.trainer(folder, *tiny.arguments(folder, "run", *overrides)[1:])
    return trainer, estimate(trainer, lines.append), "\n".join(lines)


def test_parameters_are_those_of_the_formula_and_bytes_follow(folder):
    _, found, text = estimated(folder, "optimizer.name=adamw", "training.ema_decay=0.9")
    d, f, vocabulary = 32, 64, 23
    attention, norm, ffn = 4 * (d * d + d), 2 * d, 2 * d * f + d + f
    encoder, decoder = 2 * (attention + ffn + 2 * norm), 2 * (2 * attention + ffn + 3 * norm)
    assert found["parts"]["encoder"] == encoder and found["parts"]["decoder"] == decoder
    total = encoder + decoder + 2 * norm + vocabulary * d  # one table for all three uses
    assert found["parameters"] == found["trainable"] == total == sum(found["parts"].values())
    assert found["weights"] >= 4 * total and found["gradients"] == 4 * total
    # two moments and a count of steps for each tensor, and the moving average
    assert 12 * total <= found["optimizer"] <= 12 * total + 4 * 100
    assert found["peak"] is None and "which ran" in text


def test_frozen_parameters_have_no_gradients_and_no_moments(folder):
    trainer = tiny.trainer(folder, *tiny.arguments(folder, "run")[1:])
    plain = estimate(trainer, lambda line: None)
    trainer = tiny.trainer(folder, *tiny.arguments(folder, "two", "peft.name=bitfit")[1:])
    biases = estimate(trainer, lambda line: None)
    assert biases["parameters"] == plain["parameters"]
    assert biases["gradients"] == 4 * biases["trainable"] < plain["gradients"] / 10
    assert biases["optimizer"] < plain["optimizer"] / 10


def test_activations_are_what_backward_needs(folder):
    """sin(x) keeps x, exp keeps its result, and a sum keeps nothing; weights don't count."""
    trainer = tiny.trainer(folder, *tiny.arguments(folder, "run")[1:])
    weight = next(trainer.model.parameters())

    def criterion(model, batch):
        x = torch.ones(1000, requires_grad=True) * 2
        total = x.sin().exp().sum() + (weight * weight).sum()
        return Loss(total, 1, total.detach())

    trainer.updater.objective.criterion = criterion
    most, peak, halved = _activations(trainer, trainer.data.heaviest())
    assert (most, peak, halved) == (2 * 4000, None, 0)


def test_activation_checkpointing_shows(folder):
    plain = estimated(folder)[1]["activations"]
    again = estimated(folder, "training.activation_checkpointing=true")[1]["activations"]
    assert 0 < again < plain / 2


def test_only_tokenizer_and_store_are_written(folder):
    """With training.init_from, initialisation.json was too."""
    base = tiny.train(folder, "base", "training.max_updates=2", "data.test=null")
    given = tiny.arguments(folder, "run", f"training.init_from={base}", "training.ema_decay=0.9")
    assert main([*given, "--estimate", "--debug"]) == 0
    assert {file.name for file in (folder / "run").glob("[!.]*")} == {"tokenizer", "data"}


def test_what_a_criterion_holds_is_told(folder):
    """Weights of a teacher, which may be more than the model's, were not counted."""
    trainer = tiny.trainer(folder, *tiny.arguments(folder, "run")[1:])
    assert estimate(trainer, lambda line: None)["criterion"] == 0
    trainer = tiny.trainer(folder, *tiny.arguments(folder, "run")[1:])
    trainer.criterion.teacher = [torch.nn.Linear(100, 10, bias=False)]
    trainer.criterion.student = trainer.model
    lines = []
    assert estimate(trainer, lines.append)["criterion"] == 4000
    assert "  criterion: 0.0 MiB" in lines


@pytest.mark.parametrize("weights", [(1, 1), (3, 0.25)])
def test_time_is_of_the_whole_epoch(folder, weights):
    """The number of updates was taken from the sentences of ten of them, of which some have ten times as many."""
    for side in ("xx", "en"):
        lines = (folder / f"train.{side}").read_text().splitlines()
        joined = (" ".join(lines[n : n + 4]) for n in range(100))
        (folder / f"long.{side}").write_text("\n".join(joined) + "\n")
    corpora = [
        f"{{source: {n}.xx, target: {n}.en, weight: {w}}}"
        for n, w in zip(("train", "long"), weights, strict=True)
    ]
    data = f"data.train=[{', '.join(corpora)}]"
    trainer, found, text = estimated(folder, "training.accumulate=2", data)
    trainer.data.restore(
        tiny.trainer(folder, *tiny.arguments(folder, "run", data)[1:]).data.state()
    )
    batches = list(map(trainer.data.batch, trainer.data.remaining()))
    assert found["updates_per_epoch"] == -(-len(batches) // 2)
    seconds, tokens = found["seconds_per_epoch"], sum(b.target_count for b in batches)
    assert tokens / seconds == pytest.approx(found["tokens_per_second"], rel=0.25)
    assert "target tokens a second" in text
    assert [duration(s) for s in (2.34, 119, 120, 7200, 200_000)] == [
        "2.3 seconds", "119 seconds", "2.0 minutes", "2.0 hours", "2.3 days",
    ]  # fmt: skip


def test_the_command_stops_before_training_and_the_run_then_goes_as_if_it_had_not_been(
    folder, capsys
):
    options = ("training.max_updates=4", "data.test=null")
    assert main([*tiny.arguments(folder, "run", *options), "--estimate"]) == 0
    told = capsys.readouterr().err
    for part in ("trainable", "weights:", "gradients:", "optimizer:", "activations:", "an epoch"):
        assert part in told
    assert not (folder / "run/checkpoints").exists() and not read_events(
        folder / "run/metrics.jsonl"
    )
    tiny.train(folder, "run", *options)
    tiny.train(folder, "plain", *options)
    one, two = (
        (folder / n / "checkpoints/last/model.safetensors").read_bytes() for n in ("run", "plain")
    )
    assert one == two


def test_what_does_not_fit_is_told_after_the_parameters(folder):
    def greedy(model, batch):
        torch.empty(1 << 60, dtype=torch.uint8)

    trainer = tiny.trainer(folder, *tiny.arguments(folder, "run")[1:])
    trainer.updater.objective.criterion = greedy
    lines = []
    with pytest.raises(MtplugError, match=r"out of memory .* smaller training\.max_tokens"):
        estimate(trainer, lines.append)
    assert "parameters" in lines[0]
