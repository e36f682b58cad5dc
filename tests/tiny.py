"""The made-up corpus of `mtplug.testing`, and the commands on it."""

import subprocess
import sys
from pathlib import Path

from mtplug.testing.tiny import CONFIG, LEXICON, pairs, write_corpus

__all__ = ["CONFIG", "LEXICON", "arguments", "command", "pairs", "train", "write_corpus"]


def arguments(folder: Path, name: str, *overrides: str) -> list[str]:
    """The command line that trains in `folder/name`."""
    return [str(folder / "run.yaml"), f"run_dir={folder / name}", f"data.root={folder}", *overrides]


def train(folder: Path, name: str, *overrides: str) -> Path:
    """Train in this process."""
    from mtplug.cli.train import main

    assert main([*arguments(folder, name, *overrides), "--debug"]) == 0
    return folder / name


def command(module: str, *args: object, **kwargs) -> subprocess.CompletedProcess:
    """Run `python -m mtplug.cli.MODULE` and wait."""
    line = [sys.executable, "-m", f"mtplug.cli.{module}", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, **kwargs)
