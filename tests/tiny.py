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


def forked(folder: Path, output: Path, name: str, *overrides: str, **environment: object) -> int:
    """Train in a child of this process, which need not import anything; its process id."""
    import os

    from mtplug.cli.train import main

    if child := os.fork():
        return child
    # What pytest captures with is not what the descriptors of the child lead to.
    sys.stdout = sys.stderr = output.open("a", buffering=1)
    os.environ |= {key: str(value) for key, value in environment.items()}
    os._exit(main(arguments(folder, name, *overrides)))
