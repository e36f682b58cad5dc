"""A run with everything at once, ended by SIGTERM in the middle of an epoch, goes on bit for bit."""

import json
import multiprocessing
import os
import shutil
import signal
import weakref

import pytest

from mtplug.cli.train import main
from mtplug.data.pools import Pool, StorePools
from mtplug.training.checkpoints import read_state
from mtplug.training.trainer import Trainer
from tests import tiny
from tests.training.test_resume import assert_same

SETTINGS = (
    "training.max_updates=14",
    "training.max_tokens=160",
    "training.accumulate=3",
    "training.precision=bf16",
    "validation.every_updates=5",
    "validation.max_sentences=4",
    "training.log_every=3",
    "checkpoint.every_updates=5",
    "checkpoint.average_last=2",
    "architecture.dropout=0.2",
    "data.test=null",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two corpora, in chunks small enough that several processes tokenise them."""
    monkeypatch.setattr("mtplug.data.encoding.CHUNK", 64)
    tiny.write_corpus(tmp_path)
    for side, language in enumerate(("xx", "en")):
        text = "".join(pair[side] + "\n" for pair in tiny.pairs(150, 9))
        (tmp_path / f"more.{language}").write_text(text)
    text = (tmp_path / "run.yaml").read_text()
    one = "{source: train.xx, target: train.en"
    assert one in text
    two = f"[{one}, weight: 0.6}}, {{source: more.xx, target: more.en, weight: 1.5}}]"
    (tmp_path / "run.yaml").write_text(text.replace(one + "}", two))
    return tmp_path


def stopped(folder, name, monkeypatch, update, *overrides):
    """A run that gets SIGTERM while it makes an update."""
    whole = Trainer.step

    def interrupted(self, share):
        if self.update + 1 == update:
            os.kill(os.getpid(), signal.SIGTERM)
        whole(self, share)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        assert main(tiny.arguments(folder, name, *SETTINGS, *overrides)) == 143
    return folder / name


def test_resume_after_sigterm_with_all_that_could_disturb_it(folder, monkeypatch):
    whole = tiny.train(folder, "whole", *SETTINGS, "data.workers=1")
    run = stopped(folder, "parts", monkeypatch, 4, "data.workers=2")
    state = read_state(run / "checkpoints" / "last")
    assert state["update"] == 4 and not state["scheduled"]
    assert state["data"]["sample_offset"] > 0  # in the middle of an epoch
    # The rest with another number of processes that tokenise, which decides nothing either.
    shutil.rmtree(run / "data")
    stopped(folder, "parts", monkeypatch, 11, "data.workers=3")
    tiny.train(folder, "parts", *SETTINGS, "data.workers=1")
    assert read_state(run / "checkpoints" / "last")["data"]["epoch"] >= 2
    assert_same(run, whole)


def test_pools_that_are_made_ahead_change_nothing(folder, monkeypatch):
    """Other subwords in each epoch, in this process and one pool after the other, and by others while one is trained on; and
    that stopped and gone on with."""
    settings = (
        *SETTINGS,
        "training.max_updates=8",
        "tokenizer.model_type=bpe",
        "tokenizer.vocab_size=40",
        "tokenizer.sampling=0.2",
        "data.pool=100",
        "data.workers=2",
    )
    whole = tiny.train(folder, "whole", *settings)
    monkeypatch.setattr("mtplug.data.training.LARGE", 50)
    monkeypatch.setattr("mtplug.data.training.CHANGED", 32)
    alive, made = [], []
    initialise, pool = Pool.__init__, StorePools.pool
    monkeypatch.setattr(
        Pool, "__init__", lambda self, *a: initialise(self, *a) or made.append(weakref.ref(self))
    )
    monkeypatch.setattr(
        StorePools,
        "pool",
        lambda *given: alive.append(sum(one() is not None for one in made)) or pool(*given),
    )
    run = stopped(folder, "parts", monkeypatch, 5, *settings)
    assert len(alive) > 2 and max(alive) <= 1  # and the one that is to be made then
    after = []
    monkeypatch.setattr(
        "mtplug.training.run.score_test",
        lambda *given: after.append(multiprocessing.active_children()),
    )
    tiny.train(folder, "parts", *settings)
    assert after == [[]]
    assert_same(run, whole)


def test_other_seed_other_order(folder):
    """What the test above holds equal is not equal by itself."""
    short = (*SETTINGS, "training.max_updates=2", "checkpoint.every_updates=1")
    one, two = tiny.train(folder, "one", *short), tiny.train(folder, "two", *short, "seed=2")
    with pytest.raises(AssertionError):
        assert_same(two, one)


def test_changed_tokenizer_under_an_old_run_is_refused(folder, capsys):
    run = tiny.train(folder, "run", *SETTINGS, "training.max_updates=1")
    other = tiny.train(
        folder, "other", "tokenizer.vocab_size=18", "training.max_updates=1", "data.test=null"
    )
    kept = (run / "tokenizer" / "joint.model").read_bytes()
    shutil.copy(other / "tokenizer" / "joint.model", run / "tokenizer")
    store = (run / "data" / "train-0" / "store.json").read_bytes()
    capsys.readouterr()
    assert main(tiny.arguments(folder, "run", *SETTINGS)) == 2
    error = capsys.readouterr().err
    assert f"{run}/tokenizer/joint.model has changed since {run} was begun" in error
    assert (run / "data" / "train-0" / "store.json").read_bytes() == store
    (run / "tokenizer" / "joint.model").write_bytes(kept)
    assert main(tiny.arguments(folder, "run", *SETTINGS)) == 0
    assert "joint.model" in json.loads((run / "environment.json").read_text())["tokenizer"]
