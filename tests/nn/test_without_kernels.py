"""A toolkit without `mtplug_kernels` trains and translates; what states a scheme says that it is missing."""

import json
import subprocess
import sys

from tests import tiny

WITHOUT = """
import json, sys
sys.modules["mtplug_kernels"] = None  # its import then fails
from tests import tiny
found = [tiny.called(*line) for line in json.load(sys.stdin)]
print(json.dumps([(done.returncode, done.stderr) for done in found]))
"""


def commands(*lines) -> list[tuple[int, str]]:
    """Status and messages of commands, one after another in one new process."""
    given = json.dumps([[str(x) for x in line] for line in lines])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], input=given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_training_and_translation_need_no_kernels(tmp_path):
    tiny.write_corpus(tmp_path)
    (tmp_path / "lines").write_text("a b\n")
    asked = ("--input", tmp_path / "lines", "--output", tmp_path / "out", "search.beam=3")
    refusals = {
        "architecture.position.name=alibi": "needs plugin 'relative_positions'",
        "architecture.attention.backend=reference": "mtplug_kernels is not installed; use auto",
    }
    trained, translated, *refused = commands(
        ("train", *tiny.arguments(tmp_path, "run", "training.max_updates=4")),
        ("translate", tmp_path / "run", *asked),
        *(("train", *tiny.arguments(tmp_path, "other", wish)) for wish in refusals),
    )
    assert trained[0] == 0, trained[1]
    assert "attention: sdpa" in trained[1]
    assert translated[0] == 0, translated[1]
    assert len((tmp_path / "out").read_text().splitlines()) == 1
    for (status, error), told in zip(refused, refusals.values(), strict=True):
        assert status == 2 and told in error
