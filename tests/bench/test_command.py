"""What mtplug-bench does with any suite: checks before it runs, what is recorded of it, what it gave wrongly."""

import json
import subprocess

import pytest

import mtplug
from mtplug.cli import bench

SUITE = """\
import os, signal, tempfile
import mtplug
import numpy as np

class Mine:
    left_out = ["what was not measured"]

    def run(self):
        with tempfile.TemporaryDirectory(dir=os.environ["HERE"]):
            open("ran", "w").close()
            {rows}

    def conditions(self):
        return {{"suite": "another", "commit": "none", "seconds": np.float32(0.5)}}

    def plot(self, rows, file):
        file.write_text(str(len(rows)))

@mtplug.hookimpl
def register_benchmarks(register):
    register("mine", lambda config: Mine())
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Runs a suite whose `run` ends with the statement that is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERE", str(tmp_path))

    def run(rows, *options):
        (tmp_path / "suite.py").write_text(SUITE.format(rows=rows))
        return bench.main(["mine", "--plugin", "suite.py", *map(str, options)])

    return run


def test_record_says_what_was_run_when_and_by_which_code(mine, tmp_path):
    assert mine("return [{'n': np.int64(3), 'x': np.float32(0.5)}]", "--output", "a b.json") == 0
    whole = json.loads((tmp_path / "a b.json").read_text())
    assert whole["rows"] == [{"n": 3, "x": 0.5}]
    found = whole["conditions"]
    assert found["command"] == "mtplug-bench run mine --plugin suite.py --output 'a b.json'"
    assert found["time"].endswith("+00:00") and found["mtplug"] == mtplug.__version__
    assert found["suite"] == "mine" and found["seconds"] == 0.5
    assert found["commit"] not in ("", "none")


def test_commit_is_that_of_the_checkout_alone(tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    (tmp_path / "file").touch()
    for line in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *line], check=True)
    commit = bench._commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "file").write_text("changed")
    assert bench._commit(tmp_path) == f"{commit}-dirty"
    (tmp_path / "environment").mkdir()
    assert bench._commit(tmp_path / "environment") == "not a checkout"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "folder"], "--output folder: that is a folder; give a file"),
        (["--output", "file/o.json"], "file: File exists"),
        (["--plot", "folder"], "--plot folder: name it .png, .pdf or .svg"),
        (["--plot", "p.jpeg"], "--plot p.jpeg: name it .png, .pdf or .svg"),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is_measured(
    options, message, mine, tmp_path, capsys
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert mine("return [{'n': 1}]", *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_a_run_that_fails_leaves_no_file_and_none_empty(mine, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "old.json").write_text("{}")
    for output in ("old.json", "new.json"):
        assert mine("raise mtplug.UserError('no')", "--output", output, "--plot", "p.png") == 2
    assert (tmp_path / "old.json").read_text() == "{}"
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {"old.json", "suite.py", "ran"}
    assert mine("return [{'n': 1}]", "--plot", "new/p.PNG") == 0
    assert (tmp_path / "new" / "p.PNG").read_text() == "1"


@pytest.mark.parametrize(
    ("rows", "status", "message"),
    [
        ("return []", 2, "suite mine: no rows: what was not measured"),
        ("return [{'n': 1}, ('n', 2)]", 1, "run() must give a list of dicts; it gave ('n', 2)"),
        ("return None", 1, "suite mine of plugin 'suite' (file suite.py"),
    ],
)
def test_what_are_no_rows_is_told(rows, status, message, mine, capsys):
    assert mine(rows) == status
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_suite_that_was_stopped_shows_what_it_has(mine, capsys):
    assert mine("self.stopped = True; return [{'n': 7}]") == 130
    assert "left out: what was not measured" in capsys.readouterr().out


def test_sigterm_leaves_no_folder(mine, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        mine("os.kill(os.getpid(), signal.SIGTERM); signal.pause()")
    assert stopped.value.code == 143
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("tmp")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("attention rows=17", "rows must be from 0 to 16 or a multiple of 16, not 17"),
        ("attention rows=-16", "rows must be from 0 to 16 or a multiple of 16, not -16"),
        ("attention rounds=2", "rounds must be at least 3, not 2"),
        ("attention lengths=[8,0]", "lengths must be at least 1, not 0"),
        ("data pool=0", "pool must be at least 1, not 0"),
        ("data lines=[100,0]", "lines must be at least 1, not 0"),
        ("data lines=[]", "suite data: no rows: nothing was asked for"),
        ("startup rounds=0", "rounds must be at least 1, not 0"),
        ("train vocabulary=3", "vocabulary must be at least 4, not 3"),
        ("translate vocabulary=3", "vocabulary must be at least 4, not 3"),
        ("translate shortlist=1", "shortlist must be at least 2, not 1"),
        ("translate_run rounds=0", "rounds must be at least 1, not 0"),
        ("translate_run beams=[5,0]", "beams must be at least 1, not 0"),
    ],
)
def test_wrong_settings_are_told_in_a_line(line, message, capsys):
    assert bench.main(["run", *line.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
