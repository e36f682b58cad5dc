"""Checkpoints by the clock: what a killed run goes on from, and nothing else of it."""

import pytest

from mtplug.cli import average
from mtplug.errors import UserError
from mtplug.training.checkpoints import Checkpoints, read_state
from mtplug.training.trackers import read_events
from mtplug.training.trainer import Trainer
from tests import tiny
from tests.training.test_parallel import together
from tests.training.test_resume import assert_same

SETTINGS = (
    "training.max_updates=12",
    "training.accumulate=2",
    "training.log_every=1",
    "training.ema_decay=0.9",
    "validation.every_updates=6",
    "validation.max_sentences=4",
    "checkpoint.keep_last=3",
    "checkpoint.average_last=2",
    "architecture.dropout=0.2",
    "data.test=null",
)
ALWAYS = (
    "checkpoint.every_minutes=1e-9"  # each update but the first since a checkpoint takes longer
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("minutes")
    tiny.write_corpus(made)
    tiny.train(made, "whole", *SETTINGS, "checkpoint.every_minutes=0")
    return made


def saved(run):
    """Updates of the checkpoints that a run has made, in their order."""
    return [e["update"] for e in read_events(run / "metrics.jsonl") if e["event"] == "checkpoint"]


def test_a_killed_run_goes_on_from_the_last_minutes_with_the_same_bits(folder, monkeypatch):
    """A run with an epoch of days had no checkpoint on its first one."""
    step = Trainer.step

    def killed(self, share):
        if self.update == 5:
            raise MemoryError("as kill -9, it saves nothing")
        step(self, share)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Trainer, "step", killed)
        tiny.train(folder, "parts", *SETTINGS, ALWAYS)
    checkpoints = Checkpoints(folder / "parts" / "checkpoints")
    assert saved(folder / "parts") == [2, 4]
    (kept,) = checkpoints.steps()  # one of them
    assert kept == (checkpoints.folder / "last").resolve() and not checkpoints.scheduled()
    state = read_state(kept)
    assert (state["scheduled"], state["unscored"]) == (False, False)
    tiny.train(folder, "parts", *SETTINGS, ALWAYS)
    assert_same(folder / "parts", folder / "whole")
    assert [p.name for p in checkpoints.steps()] == ["step-00000006", "step-00000012"]
    assert saved(folder / "whole") == [6, 12]


def test_none_is_saved_before_its_time_and_one_anew_after_each_other(folder, monkeypatch):
    clock = iter(
        [0, 30, 59, 61, 62, 90, 130, 200, 259, 261, 300, 301]
    )  # seconds, at each update's begin
    step = Trainer.step

    def timed(self, share):
        step(self, share)
        first, self._clock = self._saved == self._clock, float(next(clock))
        if first:
            self._saved = self._clock

    monkeypatch.setattr(Trainer, "step", timed)
    tiny.train(folder, "timed", *SETTINGS, "checkpoint.every_minutes=1")
    # At 61 s; since 62 s would be one at 130 s, but the validation after the sixth saves one anyway; so since
    # 130 s at 200 s; since 259 s none.
    assert saved(folder / "timed") == [4, 6, 8, 12]
    assert_same(folder / "timed", folder / "whole")


def test_an_average_does_not_depend_on_the_clock(folder, monkeypatch, capsys):
    step = Trainer.step

    def killed(self, share):
        if self.update == 11:
            raise MemoryError
        step(self, share)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Trainer, "step", killed)
        settings = (*SETTINGS, "validation.every_updates=3", ALWAYS)
        tiny.train(folder, "averaged", *settings)
    assert not read_state(folder / "averaged/checkpoints/last")["scheduled"]
    capsys.readouterr()
    assert average.main([str(folder / "averaged"), "--last", "2"]) == 0
    assert "average of step-00000006, step-00000009" in capsys.readouterr().out


def test_the_main_processs_clock_decides_for_all(folder):
    plugin = folder / "clocks.py"
    plugin.write_text(
        "import mtplug\n@mtplug.hookimpl\ndef on_update_end(trainer, update):\n"
        "    if trainer.processes.rank == (0 if update == 4 else 1): trainer._since -= 3600\n"
    )
    settings = ("training.max_updates=6", "training.max_tokens=160", "validation.every_updates=6",
                "validation.max_sentences=4", "training.log_every=1", "data.test=null")  # fmt: skip
    together(folder, "two", 2, *settings, "checkpoint.every_minutes=30", f"--plugin={plugin}")
    together(folder, "never", 2, *settings, "checkpoint.every_minutes=0", f"--plugin={plugin}")
    assert saved(folder / "two") == [5, 6] and saved(folder / "never") == [6]
    files = [folder / name / "checkpoints/last/training.safetensors" for name in ("two", "never")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_time_below_nothing_is_refused(folder):
    with pytest.raises(UserError, match=r"every_minutes must be at least 0"):
        tiny.trainer(folder, "checkpoint.every_minutes=-1", f"run_dir={folder / 'no'}")
