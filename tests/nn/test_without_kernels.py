"""A toolkit without `mtplug_kernels` trains and translates; what states a scheme says that it is missing."""

import subprocess
import sys

from tests import tiny

WITHOUT = """
import sys
sys.modules["mtplug_kernels"] = None  # its import then fails
from mtplug.cli import train, translate
command, *args = sys.argv[1:]
sys.exit({"train": train, "translate": translate}[command].main(args))
"""


def command(*args) -> subprocess.CompletedProcess:
    line = [sys.executable, "-c", WITHOUT, *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True)


def test_training_and_translation_need_no_kernels(tmp_path):
    tiny.write_corpus(tmp_path)
    trained = command("train", *tiny.arguments(tmp_path, "run", "training.max_updates=4"))
    assert trained.returncode == 0, trained.stderr
    assert "attention: sdpa" in trained.stderr
    (tmp_path / "lines").write_text("a b\n")
    asked = ("--input", tmp_path / "lines", "--output", tmp_path / "out", "search.beam=3")
    translated = command("translate", tmp_path / "run", *asked)
    assert translated.returncode == 0, translated.stderr
    assert len((tmp_path / "out").read_text().splitlines()) == 1

    for wish, told in (
        ("architecture.position.name=alibi", "needs plugin 'relative_positions'"),
        ("architecture.attention.backend=reference", "mtplug_kernels is not installed; use auto"),
    ):
        refused = command("train", *tiny.arguments(tmp_path, "other", wish))
        assert refused.returncode == 2 and told in refused.stderr
