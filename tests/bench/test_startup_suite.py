"""The start-up suite times processes by what the system tells of them."""

import json
import sys

import pytest

from mtplug.bench.rounds import peak
from mtplug.bench.startup import _row, _timed
from mtplug.cli import bench
from mtplug.errors import MtplugError


def test_times_are_those_of_the_process():
    # Half a second of sleep is no CPU time; what is allocated and written to is resident.
    wall, cpu, memory = _timed(
        [sys.executable, "-c", "import time; b = b'x' * (100 << 20); time.sleep(0.5)"]
    )
    assert wall >= 0.5 and cpu < wall - 0.3 and memory > 100


def test_memory_of_a_child_that_holds_less_than_its_parent_is_not_told():
    _, _, memory = _timed([sys.executable, "-c", "pass"])  # this process has torch
    assert memory >= peak() - 1 and _row("python", [(1.0, 1.0, memory)], peak())["MiB"] == ""
    assert _row("python", [(1.0, 1.0, 300.4)], 200)["MiB"] == 300


def test_a_process_that_fails_is_told():
    with pytest.raises(MtplugError, match="status 3: no good"):
        _timed([sys.executable, "-c", "import sys; print('no good'); sys.exit(3)"])


def test_suite_reaches_the_first_update(tmp_path):
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "rows.json", tmp_path / "rows.png"
    settings = ["pairs=60", "vocabulary=100", "dim=16", "ffn_dim=16", "layers=1", "rounds=1",
                "rows=[import mtplug,first update]"]  # fmt: skip
    assert bench.main(["run", "startup", *settings, "--output", str(out), "--plot", str(plot)]) == 0
    whole = json.loads(out.read_text())
    assert [row["process"] for row in whole["rows"]] == ["import mtplug", "first update"]
    assert all(row["wall s"] > 0 and row["CPU s"] > 0 for row in whole["rows"])
    assert len(whole["conditions"]["load average over 1, 5, 15 minutes"]) == 3
    assert whole["conditions"]["threads of the training"] == 1
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_unknown_row_is_named(capsys):
    assert bench.main(["run", "startup", "pairs=5", "rows=[export]"]) == 2
    assert "'export' is none of python, import torch" in capsys.readouterr().err
