"""A run that is killed and started again ends with the same bits as one that never was."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mtplug.cli.train import main
from mtplug.training.trackers import read_events
from tests import tiny

SETTINGS = (
    "training.max_updates=40",
    "training.accumulate=2",
    "validation.every_updates=15",
    "validation.max_sentences=4",
    "training.log_every=7",
    "checkpoint.every_updates=4",
    "checkpoint.keep_last=3",
    "checkpoint.average_last=3",
    "architecture.dropout=0.2",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("resume")
    tiny.write_corpus(made)
    tiny.train(made, "whole", *SETTINGS)
    return made


def start(folder, name, *settings):
    return tiny.forked(folder, said_by(folder, name), name, *settings)


def said_by(folder, name):
    """The file of what the processes that trained `name` have printed."""
    return folder / f"{name}.txt"


def wait_for_update(run_dir, process, update):
    """Until metrics.jsonl tells of `update`, or the process has ended."""
    while process.is_alive():
        events = read_events(run_dir / "metrics.jsonl")
        if any(e["update"] >= update for e in events):
            return
        time.sleep(0.005)


def digest(file):
    """Of a file's bytes: where CI is set, pytest looks for the difference of long values for hours."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def weights(run_dir):
    checkpoints = run_dir / "checkpoints"
    return {
        name: digest(checkpoints / name / "model.safetensors")
        for name in ("last", "averaged", "best")
    }


def assert_same(run_dir, whole):
    assert weights(run_dir) == weights(whole)
    ours, theirs = (r / "checkpoints/last/training.safetensors" for r in (run_dir, whole))
    assert digest(ours) == digest(theirs)
    states = [json.loads((r / "checkpoints/last/state.json").read_text()) for r in (run_dir, whole)]
    for state in states:
        del state["seconds"], state["window"]["seconds"]
    assert states[0] == states[1]
    told = ("update", "loss", "nll", "gradient_norm", "padding")
    ours, theirs = (
        [[e[k] for k in told] for e in read_events(r / "metrics.jsonl") if e["event"] == "train"]
        for r in (run_dir, whole)
    )
    assert ours == theirs


def test_killed_at_random_moments(folder):
    rng = random.Random(5)
    run_dir = folder / "killed"
    for update in sorted(rng.sample(range(1, 38), 3)):
        process = start(folder, "killed", *SETTINGS)
        wait_for_update(run_dir, process, update)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        tiny.ended(process)
    tiny.train(folder, "killed", *SETTINGS)
    assert_same(run_dir, folder / "whole")


def test_a_training_goes_on_when_nobody_reads_its_log(folder):
    """`2>&1 | head -3`: what was trained since the last checkpoint was lost, without a word."""

    def line(name):
        return [sys.executable, "-m", "mtplug.cli.train", *tiny.arguments(folder, name, *SETTINGS)]

    process = subprocess.Popen(
        line("unheard"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    process.stderr.readline()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert_same(folder / "unheard", folder / "whole")
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&- >&- <&-', "sh", *line("closed")], timeout=60)
    assert done.returncode == 0
    assert_same(folder / "closed", folder / "whole")


def test_a_copy_that_followed_links_goes_on(folder):
    """As `cp -rL` and `scp -r` make it: best and last are folders there."""
    first = tiny.train(folder, "linked", *SETTINGS, "training.max_updates=20")
    copy = shutil.copytree(first, folder / "copied", symlinks=False)
    assert not (copy / "checkpoints/last").is_symlink()
    tiny.train(folder, "copied", *SETTINGS)
    assert (copy / "checkpoints/last").is_symlink() and (copy / "checkpoints/best").is_symlink()
    assert_same(copy, folder / "whole")


def test_a_file_system_without_links_is_told(folder, monkeypatch, capsys):
    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    assert main(tiny.arguments(folder, "linkless", *SETTINGS)) == 1
    assert "best and last are symbolic links, which this file system" in capsys.readouterr().err


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("signum", "status"), SIGNALS)
def test_signal_saves_a_checkpoint_and_says_so(folder, signum, status):
    if signal.getsignal(signum) is signal.SIG_IGN:
        pytest.skip(
            f"the tests were started with {signum.name} ignored, as by nohup or in the background of a script"
        )
    name = f"signal-{status}"
    process = start(folder, name, *SETTINGS)
    wait_for_update(folder / name, process, 6)
    os.kill(process.pid, signum)
    code, error = tiny.ended(process), said_by(folder, name).read_text()
    assert code == status, error
    assert "is saved, run the same command to go on" in error and "Traceback" not in error
    tiny.train(folder, name, *SETTINGS)
    assert_same(folder / name, folder / "whole")


def test_signal_in_a_validation_ends_it_and_the_run_goes_on_with_it(folder):
    plugin = folder / "cut.py"
    plugin.write_text(tiny.CUT_SHORT)
    settings = (*SETTINGS, "validation.metrics=[{name: bleu},{name: cut}]",
                "training.ema_decay=0.9", f"--plugin={plugin}")  # fmt: skip
    process = start(folder, "cut", *settings)
    code, error = tiny.ended(process), said_by(folder, "cut").read_text()
    assert code == 143 and "is saved, run the same command to go on" in error
    state = json.loads((folder / "cut/checkpoints/last/state.json").read_text())
    assert (state["update"], state["unscored"], state["scheduled"]) == (15, True, False)
    tiny.train(folder, "cut", *settings)
    tiny.train(folder, "uncut", *settings)
    assert_same(folder / "cut", folder / "uncut")
    updates = [
        e["update"] for e in read_events(folder / "cut/metrics.jsonl") if e["event"] == "validation"
    ]
    assert updates == [15, 30, 40]


def test_finished_run_is_not_trained_again(folder, capsys):
    before = os.stat(folder / "whole/checkpoints/last/model.safetensors").st_mtime_ns
    tiny.train(folder, "whole", *SETTINGS)
    assert os.stat(folder / "whole/checkpoints/last/model.safetensors").st_mtime_ns == before
    assert "BLEU = " in capsys.readouterr().err


def test_saved_configuration_repeats_the_run(folder):
    from mtplug.cli.train import main

    again = folder / "again"
    assert main([str(folder / "whole" / "config.yaml"), f"run_dir={again}"]) == 0
    assert_same(again, folder / "whole")


def test_run_copied_elsewhere_translates(folder, tmp_path):
    import mtplug

    here = mtplug.load(folder / "whole").translate(["ka lo", "mi"])
    shutil.copytree(folder / "whole", tmp_path / "copy", symlinks=True)
    assert mtplug.load(tmp_path / "copy").translate(["ka lo", "mi"]) == here


def test_early_stopping_counts_over_a_resume(folder):
    settings = (
        *SETTINGS, "validation.patience=2", "validation.every_updates=3", "optimizer.lr=1e-9",
        "validation.best_metric=bleu", "training.max_updates=39",
    )  # fmt: skip
    tiny.train(folder, "patience", *settings)
    process = start(folder, "patience-killed", *settings)
    wait_for_update(folder / "patience-killed", process, 5)
    process.kill()
    tiny.ended(process)
    tiny.train(folder, "patience-killed", *settings)
    assert_same(folder / "patience-killed", folder / "patience")
    last = json.loads((folder / "patience/checkpoints/last/state.json").read_text())
    assert last["without_better"] == 2 and last["update"] < 39


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"


def test_a_folder_in_which_another_process_trains_is_refused(folder, capsys):
    """Both ran, and each removed the other's checkpoints."""
    from mtplug.cli import preprocess, train

    short = tiny.arguments(folder, "held", *SETTINGS, "training.max_updates=2", "data.test=null")
    assert preprocess.main(short) == 0
    lock = folder / "held" / ".lock"
    assert f"process {os.getpid()} on " in lock.read_text()  # which keeps nobody out any more
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout.readline() == "held\n"
    capsys.readouterr()
    assert train.main(short) == 2
    error = capsys.readouterr().err
    assert f"{folder}/held: another process trains there (process {os.getpid()} on " in error
    assert error.count("\n") == 1
    other.kill()
    other.communicate()
    assert train.main(short) == 0


def test_a_file_system_without_locks_is_no_obstacle(folder, monkeypatch):
    from mtplug.training.lock import only_writer

    def refused(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refused)
    with only_writer(folder / "nfs"):
        assert (folder / "nfs").is_dir()
