"""The largest batch is tried when training begins, and nothing else changes by it."""

import pytest
import torch

from mtplug.errors import MtplugError
from mtplug.files import read_tensors
from mtplug.training.trackers import read_events
from mtplug.training.trainer import Trainer
from tests import tiny

SETTINGS = (
    "data.test=null",
    "training.max_updates=7",
    "architecture.dropout=0.3",
    "training.accumulate=2",
)


@pytest.fixture
def folder(tmp_path):
    tiny.write_corpus(tmp_path)
    return tmp_path


def attempts(run):
    return [e for e in read_events(run / "metrics.jsonl") if e["event"] == "largest_batch"]


@pytest.mark.parametrize("options", [(), ("training.precision=fp16", "training.ema_decay=0.9")])
def test_bits_are_those_of_a_run_that_does_not_try(folder, monkeypatch, options):
    tried = tiny.train(folder, "tried", *SETTINGS, *options)
    monkeypatch.setattr(Trainer, "_try_largest", lambda self: None)
    not_tried = tiny.train(folder, "not", *SETTINGS, *options)
    assert attempts(tried) and not attempts(not_tried)
    for file in ("model.safetensors", "training.safetensors"):  # with the random numbers' state
        one, two = (read_tensors(r / "checkpoints/last" / file) for r in (tried, not_tried))
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("packing", ["false", "true"])
def test_it_is_the_largest_of_all(folder, packing):
    trainer = tiny.trainer(
        folder, *tiny.arguments(folder, "run", f"training.packing={packing}")[1:]
    )
    sizes = [
        b.source_tokens.numel() + b.target_tokens.numel()
        for b in map(trainer.data.batch, trainer.data.remaining())
    ]
    found = trainer.data.heaviest()
    assert found.source_tokens.numel() + found.target_tokens.numel() == max(sizes) > min(sizes)
    assert trainer.data.offset == 0


def bounded(trainer, most):
    """Less memory than a batch of more than `most` sentences takes, as the CPU tells it."""
    criterion = trainer.updater.objective.criterion
    seen = []

    def criterion_with_little_memory(model, batch):
        seen.append(len(batch))
        if len(batch) > most:
            torch.empty(1 << 60, dtype=torch.uint8)
        return criterion(model, batch)

    trainer.updater.objective.criterion = criterion_with_little_memory
    return seen


def test_too_large_for_memory_is_known_after_the_first_update(folder):
    trainer = tiny.trainer(folder, *tiny.arguments(folder, "run", *SETTINGS)[1:])
    trainer.step(next(trainer.groups_of_batches()))
    seen = bounded(trainer, 12)
    events = []
    trainer.emit = lambda kind, **values: events.append((kind, values))
    trainer._try_largest()
    ((kind, values),) = events
    pairs = values["pairs"]
    assert kind == "largest_batch" and seen[0] == pairs > 12
    assert 2 ** values["halved"] >= pairs / 12 > 2 ** (values["halved"] - 1)
    assert "too large for memory unless cut in" in values["text"]


def test_what_cannot_be_cut_ends_the_run_at_once(folder):
    trainer = tiny.trainer(folder, *tiny.arguments(folder, "run", *SETTINGS)[1:])
    bounded(trainer, 0)
    with pytest.raises(MtplugError, match=r"out of memory .*set a smaller training\.max_tokens"):
        trainer._try_largest()
