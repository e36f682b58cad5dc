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


def trainer(folder: Path, *overrides: str):
    """A trainer in this process that has done nothing yet."""
    import torch

    from mtplug.config import load_config
    from mtplug.training.processes import Processes
    from mtplug.training.run import prepare
    from mtplug.training.trainer import Trainer

    run, _ = load_config(folder / "run.yaml", list(overrides))
    task = prepare(run, lambda text: None)
    made = Trainer(run, Path(run.run_dir), task, Processes(0, 1, torch.device("cpu")))
    made._reset_window()
    return made


def command(module: str, *args: object, **kwargs) -> subprocess.CompletedProcess:
    """Run `python -m mtplug.cli.MODULE` and wait."""
    line = [sys.executable, "-m", f"mtplug.cli.{module}", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, **kwargs)
