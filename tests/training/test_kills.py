"""kill -9 at random moments of a run's life: no checkpoint is lost or torn, and the end is the same.

A few kills by default; `MTPLUG_KILLS=60 pytest -s tests/training/test_kills.py` does as many as you like and
tells what they hit.
"""

import collections
import itertools
import multiprocessing
import os
import random
import signal
import time

import pytest

from mtplug.training.checkpoints import Checkpoints
from tests import tiny
from tests.training.test_resume import assert_same

KILLS = int(os.environ.get("MTPLUG_KILLS", "5"))
SETTINGS = (
    "training.max_updates=12",
    "training.accumulate=2",
    "training.log_every=1",
    "training.ema_decay=0.9",
    "validation.every_updates=6",
    "data.test=null",
    "validation.max_sentences=4",
    "checkpoint.every_updates=1",
    "checkpoint.keep_last=3",
    "checkpoint.average_last=3",
    "architecture.dropout=0.2",
)


def lives(folder, name, after=None, seconds=0.0):
    """Whether the run came to its end; it is killed so many seconds after the checkpoint of an update,
    or after its begin where that is 0."""
    child = tiny.forked(folder, folder / "output.txt", name, *SETTINGS)
    if after is not None:
        awaited = folder / name / "checkpoints" / f"step-{after:08d}"
        while after and not awaited.exists() and child.is_alive():
            time.sleep(0.001)
        if child.is_alive():
            time.sleep(seconds)
            child.kill()
    code = tiny.ended(child)
    assert code in (0, -signal.SIGKILL), (folder / "output.txt").read_text()
    return code == 0


def newest(run):
    """The update of the newest checkpoint; all that there are load, and links lead somewhere."""
    checkpoints = Checkpoints(run / "checkpoints")
    for path in checkpoints.steps():
        state, weights, training = checkpoints.read(path)
        assert path.name == f"step-{state['update']:08d}" and weights and training
    for name in ("last", "best"):
        link = checkpoints.folder / name
        assert link.exists() or not link.is_symlink()
    return max([int(p.name[5:]) for p in checkpoints.steps()], default=0)


def moment(run, begun):
    """What a kill has interrupted, from what it left."""
    if list((run / "checkpoints").glob(".*")):
        return "while a checkpoint was written or removed"
    if newest(run):
        return "between checkpoints" if begun else "before the first update of a resumed run"
    store = (run / "data" / "train-0").exists()
    return "before the first checkpoint" if store else "before the store was there"


@pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="needs fork"
)
def test_killed_anywhere_a_run_loses_nothing_and_ends_the_same(tmp_path):
    tiny.write_corpus(tmp_path)
    assert lives(tmp_path, "whole")
    rng = random.Random(1)
    hit = collections.Counter()
    runs = 0
    while hit.total() < KILLS:
        runs += 1
        run, before = tmp_path / f"run-{runs}", 0
        for _ in itertools.count():
            if hit.total() == KILLS:
                assert lives(tmp_path, run.name)
                break
            # Early in a process's life, or around one of its next checkpoints.
            after = rng.choice([0, before + rng.randint(1, 4)])
            if lives(tmp_path, run.name, after, rng.uniform(0, 0.1 if after else 1.5)):
                break
            now = newest(run)
            assert now >= before, f"checkpoint {before} is lost"
            hit[moment(run, now > before)] += 1
            before = now
        assert_same(run, tmp_path / "whole")
    print(f"\n{KILLS} kills over {runs} runs, all with the bits of the run never killed:")
    for what, count in hit.most_common():
        print(f"  {count:3} {what}")


def test_the_check_sees_a_torn_checkpoint(tmp_path):
    tiny.write_corpus(tmp_path)
    run = tiny.train(
        tmp_path, "run", "training.max_updates=2", "checkpoint.every_updates=1", "data.test=null"
    )
    assert newest(run) == 2
    file = run / "checkpoints" / "step-00000002" / "training.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Exception, match="is damaged"):
        newest(run)
