"""The made-up corpus of `mtplug.testing`, and the commands on it."""

import importlib
import importlib.metadata
import io
import multiprocessing
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

from mtplug.testing.tiny import CONFIG, LEXICON, pairs, write_corpus

__all__ = [
    "CONFIG",
    "CUT_SHORT",
    "LEXICON",
    "arguments",
    "called",
    "command",
    "pairs",
    "train",
    "write_corpus",
]

CUT_SHORT = """
import os, signal, time
from pathlib import Path
import mtplug
from mtplug.evaluation import Metric, Score
class Cut(Metric):
    label, higher_is_better = "cut", True
    def score(self, hypotheses, references):
        marker = Path(__file__).with_suffix(".done")
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        return Score("cut", float(len(hypotheses)), "none", "cut")
@mtplug.hookimpl
def register_metrics(register):
    register("cut", lambda config, language: Cut())
"""
"""A plugin whose metric takes ten minutes and gets a signal, the first time that anything is scored."""

SLOW = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "mtplug.cli.train",
    "mtplug.training.run",
    "mtplug.training.trainer",
]
"""What a training imports and takes long."""


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
    return Trainer(run, Path(run.run_dir), task, Processes(0, 1, torch.device("cpu")))


def command(module: str, *args: object, **kwargs) -> subprocess.CompletedProcess:
    """Run `python -m mtplug.cli.MODULE` and wait."""
    line = [sys.executable, "-m", f"mtplug.cli.{module}", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, **kwargs)


def called(module: str, *args: object, input: str = "") -> subprocess.CompletedProcess:
    """As `command`, without the seconds of a new process: of plugins, an earlier call leaves nothing."""
    from mtplug import plugins

    line = [f"mtplug-{module}", *map(str, args)]
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        mock.patch.dict(os.environ, {"MTPLUG_BLOCK": "", "MTPLUG_PLUGIN_FILES": ""}),
        mock.patch.object(plugins, "_current", None),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(input.encode()), "utf-8")),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            status = importlib.import_module(f"mtplug.cli.{module}").main(line[1:])
        except SystemExit as ended:
            status = ended.code
    told = (stream.buffer.getvalue().decode() for stream in (out, err))
    return subprocess.CompletedProcess(line, status, *told)


def forked(
    folder: Path, output: Path, name: str, *overrides: str, **environment: object
) -> BaseProcess:
    """Train in a process of its own, which need not import anything.

    It is forked from a server that has imported all and run nothing: a fork of this process, with
    whatever threads other tests have left in it, may wait for ever for a lock that nobody holds.
    """
    context = multiprocessing.get_context("forkserver")
    built_in = [entry.module for entry in importlib.metadata.entry_points(group="mtplug")]
    context.set_forkserver_preload([*SLOW, *built_in])
    values = {key: str(value) for key, value in environment.items()}
    child = context.Process(
        target=_train, args=(arguments(folder, name, *overrides), output, values)
    )
    child.start()
    return child


def _train(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    from mtplug.cli.train import main

    sys.stdout = sys.stderr = output.open("a", buffering=1)
    os.environ |= environment
    sys.exit(main(arguments))


def ended(child: BaseProcess, seconds: float = 120) -> int:
    """The exit code of a process, which is negative where a signal ended it; it is killed if it takes too long."""
    child.join(seconds)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise AssertionError(f"process still ran after {seconds} s")
    return child.exitcode
