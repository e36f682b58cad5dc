"""Suite `startup`: what passes between a command and its first result, each in a fresh process."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import mtplug
from mtplug.bench.rounds import peak
from mtplug.errors import MtplugError, UserError
from mtplug.registry import require_range

# Ends the process at a point of its life, so that its times are those up to there.
STOP = """\
import os
import mtplug


@mtplug.hookimpl
def {hook}(trainer):
    os._exit(0)
"""
CONFIG = """\
task: {{name: translation, source_lang: xx, target_lang: yy}}
data: {{train: {{source: train.xx, target: train.yy}}, valid: {{source: valid.xx, target: valid.yy}}}}
tokenizer: {{name: sentencepiece, model_type: word, vocab_size: {vocabulary}}}
architecture: {{dim: {dim}, ffn_dim: {ffn_dim}, heads: {heads}, encoder_layers: {layers}, decoder_layers: {layers}}}
training: {{max_updates: 1, max_tokens: {max_tokens}, precision: {precision}, threads: 1}}
logging: {{trackers: [{{name: jsonl}}, {{name: console}}]}}
"""


@dataclass
class StartupSuiteConfig:
    """Seconds from a command to its first result: import, help, and the first training update."""

    pairs: int = 29_000
    """sentence pairs of the made-up corpus"""
    vocabulary: int = 8000
    dim: int = 256
    ffn_dim: int = 1024
    heads: int = 4
    layers: int = 4
    """of encoder and of decoder"""
    max_tokens: int = 4096
    """size of a batch"""
    precision: str = "fp32"
    rounds: int = 5
    """counted rounds, after one that is not"""
    rows: list[str] = field(
        default_factory=lambda: [
            "python",
            "import torch",
            "import mtplug",
            "help",
            "ready to train",
            "first update",
        ]
    )
    """what is timed; python and torch are what nothing can be faster than, the last two are from the
    command to the moment before and after the first update, with a store that exists"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "pairs", "rounds")


class StartupSuite:
    """Every row is a process of its own; of all rows one round after the other, so that a busy machine
    slows all alike."""

    def __init__(self, config: StartupSuiteConfig):
        self.config = config
        self._load: tuple[float, float, float] | None = None

    def run(self) -> list[dict[str, Any]]:
        """A row for each process: seconds of wall clock and of CPU time, and resident memory, which is not known
        of one that holds less than this process does."""
        with tempfile.TemporaryDirectory() as folder:
            return self._run(Path(folder))

    def _run(self, folder: Path) -> list[dict[str, Any]]:
        lines = self._lines(folder)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in lines}
        for number in range(self.config.rounds + 1):
            for name, line in lines.items():
                taken = _timed(line)
                if number:
                    found[name].append(taken)
        self._load = os.getloadavg()
        floor = peak()
        return [_row(name, taken, floor) for name, taken in found.items()]

    def _lines(self, folder: Path) -> dict[str, list[str]]:
        """The command line of each row. The uncounted round writes the store."""
        run = write_material(folder, self.config)
        python = [sys.executable, "-c"]
        train = [sys.executable, "-m", "mtplug.cli.train"]
        lines = {
            "python": [*python, "pass"],
            "import torch": [*python, "import torch"],
            "import mtplug": [*python, "import mtplug"],
            "help": [*train, "--help"],
            "ready to train": [*train, *run, "--plugin", str(folder / "on_train_start.py")],
            "first update": [*train, *run, "--plugin", str(folder / "on_update_end.py")],
        }
        for name in self.config.rows:
            if name not in lines:
                raise UserError(f"rows: '{name}' is none of {', '.join(lines)}")
        return {name: lines[name] for name in self.config.rows}

    def conditions(self) -> dict[str, Any]:
        """How busy the machine was: with more processes than cores only CPU time says something."""
        load = [round(x, 1) for x in self._load or ()]
        return {
            "cores": os.cpu_count(),
            "threads of the training": 1,
            "load average over 1, 5, 15 minutes": load,
        }

    def plot(self, rows: Sequence[dict[str, Any]], file: Path) -> None:
        """Bars of both times."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 1.2 + 0.6 * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for shift, key, colour in ((-0.2, "wall s", "tab:grey"), (0.2, "CPU s", "tab:blue")):
            places = [n + shift for n in range(len(rows))]
            bars = axes.barh(places, [r[key] for r in rows], 0.38, color=colour, label=key)
            axes.bar_label(bars, padding=3, fmt="%.2f")
        axes.set_yticks(range(len(rows)), [r["process"] for r in rows])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set(xlabel="seconds, medians", title="From the command to its first result")
        axes.legend()
        figure.savefig(file, dpi=120)


def write_material(folder: Path, config: StartupSuiteConfig) -> list[str]:
    """A corpus of made-up words, plugins that end a training, and the arguments of that training."""
    rng = np.random.default_rng(1)
    syllables = [a + b for a, b in itertools.product("bdfgklmnprst", "aeiou")]
    words = ["".join(w) for w in itertools.islice(itertools.product(syllables, repeat=3), 12_000)]
    for split, count in (("train", config.pairs), ("valid", 100)):
        for side in ("xx", "yy"):
            lengths = rng.integers(4, 24, count)
            # Few frequent words and many rare ones, as in a language.
            ids = np.minimum(rng.zipf(1.2, int(lengths.sum())), len(words)) - 1
            rows = np.split(ids, np.cumsum(lengths)[:-1])
            text = "".join(" ".join(words[i] for i in row) + "\n" for row in rows)
            (folder / f"{split}.{side}").write_text(text, encoding="utf-8")
    (folder / "run.yaml").write_text(CONFIG.format(**vars(config)))
    for hook in ("on_train_start", "on_update_end"):
        (folder / f"{hook}.py").write_text(STOP.format(hook=hook))
    return [str(folder / "run.yaml"), f"run_dir={folder / 'run'}", f"data.root={folder}"]


def _timed(line: list[str]) -> tuple[float, float, float]:
    """Seconds of wall clock, seconds of CPU time, and MiB of resident memory of a process.

    Linux counts what is resident from the fork on, so no less than this process held is told.

    Raises:
        MtplugError: it failed.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        child = subprocess.Popen(line, stdout=output, stderr=output)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            output.seek(0)
            last = (output.read().decode(errors="replace").splitlines() or [""])[-1]
            raise MtplugError(f"{' '.join(line)} ended with status {child.returncode}: {last}")
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def _row(name: str, taken: list[tuple[float, float, float]], floor: int) -> dict[str, Any]:
    """`floor`: MiB that this process held at most, which are those of a child that holds less."""
    wall, cpu, memory = (sorted(column) for column in zip(*taken, strict=True))
    return {
        "process": name,
        "wall s": round(statistics.median(wall), 3),
        "least": round(wall[0], 3),
        "most": round(wall[-1], 3),
        "CPU s": round(statistics.median(cpu), 3),
        "CPU least": round(cpu[0], 3),
        "CPU most": round(cpu[-1], 3),
        "MiB": held if (held := round(statistics.median(memory))) > floor + 1 else "",
    }


@mtplug.hookimpl
def register_benchmarks(register):
    register("startup", StartupSuite, StartupSuiteConfig)
