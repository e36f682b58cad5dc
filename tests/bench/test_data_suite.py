"""Suite `data` on a small corpus."""

import json

import numpy as np

from mtplug.bench.data import write_corpus
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
