"""Suite `data` on a small corpus."""

import json

import numpy as np

from mtplug.bench.data import DataSuite, write_corpus
from mtplug.cli.bench import main


def test_corpus_is_as_long_as_asked_for_and_always_the_same(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_corpus(tmp_path / name, 12_345, 5.0)
    for side in ("source", "target"):
        text = (tmp_path / "a" / side).read_text()
        assert text == (tmp_path / "b" / side).read_text()
        lengths = [len(line.split()) for line in text.splitlines()]
        assert len(lengths) == 12_345 and min(lengths) >= 1
        assert abs(np.mean(lengths) - 5) < 0.1


def test_suite_measures_and_draws(tmp_path):
    out, plot = tmp_path / "data.json", tmp_path / "data.png"
    settings = ["lines=[600,1200]", "vocab_size=200", "pool=400", f"folder={tmp_path}"]
    assert main(["run", "data", *settings, "--output", str(out), "--plot", str(plot)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["lines"], row["pools"]) for row in rows] == [(600, 2), (1200, 3)]
    assert all(row["lines/s"] > 0 and 0 < row["padding"] < 0.5 for row in rows)
    assert plot.stat().st_size > 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.json", "data.png"]


def test_a_size_that_cannot_be_measured_is_left_out(tmp_path):
    out = tmp_path / "data.json"
    settings = ["lines=[30,600]", "vocab_size=100", "pool=599", f"folder={tmp_path}"]
    assert main(["run", "data", *settings, "--output", str(out)]) == 0
    whole = json.loads(out.read_text())
    assert [(row["lines"], row["pools"]) for row in whole["rows"]] == [
        (600, 2)
    ]  # of 1 pair the second
    assert whole["left_out"] == [
        "30 lines: batch: all pairs are in one batch; more lines or fewer max_tokens make several"
    ]


def test_rows_before_an_interrupt_are_kept(tmp_path, monkeypatch):
    def measure(self, lines):
        if lines > 10:
            raise KeyboardInterrupt
        return {"lines": lines}

    monkeypatch.setattr(DataSuite, "_measure", measure)
    out = tmp_path / "data.json"
    assert main(["run", "data", "lines=[10,20,30]", "--output", str(out)]) == 130
    whole = json.loads(out.read_text())
    assert whole["rows"] == [{"lines": 10}] and whole["left_out"] == ["stopped at 20 lines"]
