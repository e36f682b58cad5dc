"""Suite `data`: what building a store and batching from it cost, over the size of the corpus.

Building and batching each run in a process of their own, whose peak memory is what the system counted
for it. The corpus is made up: words of random letters, as frequent as Zipf's law has it.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import mtplug
from mtplug.bench.rounds import peak
from mtplug.errors import MtplugError
from mtplug.registry import require_range

SIDES = ("source", "target")
SAMPLE = 50_000
"""Lines that the tokenizer is trained on."""


@dataclass
class DataSuiteConfig:
    """Building a store and batching from it: rates, peak memory and time to the first batch, over corpus size."""

    lines: list[int] = field(default_factory=lambda: [10_000, 100_000, 1_000_000])
    """sizes of the corpus"""
    words: float = 5.0
    """mean length of a line"""
    vocab_size: int = 8000
    workers: int = 1
    """processes that tokenise"""
    max_tokens: int = 4096
    """size of a batch"""
    pool: int = 262_144
    """pairs that are shuffled and grouped by length together"""
    batches: int = 5000
    """batches that are made, at most"""
    folder: str = ""
    """where corpora and stores are written, and removed again; empty: the system's temporary folder"""

    def __post_init__(self) -> None:
        require_range(
            self, 1, math.inf, "lines", "words", "workers", "max_tokens", "pool", "batches"
        )


class DataSuite:
    """A row for each size that could be measured; `left_out` says which could not."""

    def __init__(self, config: DataSuiteConfig):
        self.config = config
        self.left_out: list[str] = []
        self.stopped = False

    def run(self) -> list[dict[str, Any]]:
        rows = []
        for lines in self.config.lines:
            try:
                rows.append(self._measure(lines))
            except MtplugError as error:
                self.left_out.append(f"{lines} lines: {error}")
            except KeyboardInterrupt:
                if not rows:
                    raise
                self.left_out.append(f"stopped at {lines} lines")
                self.stopped = True
                break
        return rows

    def conditions(self) -> dict[str, Any]:
        return {
            "cores": os.cpu_count(),
            "load": f"{os.getloadavg()[0]:.1f}",
            "memory": "peak resident memory of a fresh process (VmHWM; of a worker ru_maxrss), in MiB; `imports` is what "
            "it held before it began",
            "seconds": "CPU seconds of this process and its workers, or elapsed where it says so",
        }

    def _measure(self, lines: int) -> dict[str, Any]:
        c = self.config
        with tempfile.TemporaryDirectory(dir=c.folder or None) as made:
            folder = Path(made)
            write_corpus(folder, lines, c.words)
            tokenizer = _child("train", folder, {"vocab_size": c.vocab_size})
            built = _child("build", folder, {"workers": c.workers, "lines": lines})
            used = _child(
                "batch", folder, {"max_tokens": c.max_tokens, "pool": c.pool, "most": c.batches}
            )
        return {"lines": lines, **tokenizer, **built, **used}

    def plot(self, rows: list[dict[str, Any]], file: Path) -> None:
        """Memory, rates and delays over the size of the corpus."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        panels = (
            ("peak memory, MiB", ("building MiB", "worker MiB", "batching MiB")),
            ("per second of CPU time", ("lines/s", "batched pairs/s")),
            ("elapsed seconds to a batch", ("first batch s", "resumed s")),
        )
        figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
        sizes = [row["lines"] for row in rows]
        for axis, (title, keys) in zip(axes, panels, strict=True):
            for key in keys:
                if rows[0][key] != "":
                    axis.plot(sizes, [row[key] for row in rows], marker="o", label=key)
            axis.set(xscale="log", xlabel="sentence pairs", title=title)
            axis.set_ylim(bottom=0)
            axis.legend()
        figure.savefig(file, dpi=120)
        plt.close(figure)


def write_corpus(folder: Path, lines: int, words: float) -> None:
    """Two files of `lines` lines, whose lengths are 1 plus a Poisson number."""
    for number, side in enumerate(SIDES):
        rng = np.random.default_rng([1, number])
        letters = rng.integers(ord("a"), ord("z") + 1, (20_000, 12), dtype=np.uint8)
        sizes = rng.integers(2, 11, 20_000)
        lexicon = np.array([bytes(w[:n]).decode() for w, n in zip(letters, sizes, strict=True)])
        frequency = np.cumsum(1 / np.arange(1, 20_001))
        lengths_rng = np.random.default_rng([1, 9])  # the same of both sides
        with (folder / side).open("w", encoding="utf-8") as file:
            for start in range(0, lines, 10_000):
                lengths = 1 + lengths_rng.poisson(words - 1, min(10_000, lines - start))
                drawn = rng.random(int(lengths.sum())) * frequency[-1]
                text = lexicon[np.searchsorted(frequency, drawn)].tolist()
                ends = np.cumsum(lengths).tolist()
                for begin, end in zip([0, *ends], ends, strict=False):
                    file.write(" ".join(text[begin:end]) + "\n")


def _child(act: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What one of the functions below gives in a fresh process."""
    command = [sys.executable, "-m", "mtplug.bench.data", act, str(folder), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise MtplugError(f"{act}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _peak_of_workers() -> int:
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)


def _cpu() -> float:
    return sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def train(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    from mtplug.data.tokenizers import SentencePiece, SentencePieceConfig

    def texts():
        for side in SIDES:
            with (folder / side).open(encoding="utf-8") as file:
                yield from (line.strip() for line in itertools.islice(file, SAMPLE))

    config = SentencePieceConfig(vocab_size=settings["vocab_size"])
    SentencePiece.train(config, texts(), "joint").save(folder / "tokenizer", "joint")
    return {}


def build(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    from mtplug.data.build import build_store
    from mtplug.data.corpora.text import Text, TextConfig
    from mtplug.data.encoding import Encoding
    from mtplug.data.tokenizers import SentencePiece

    tokenizer = SentencePiece.load(folder / "tokenizer", "joint")
    corpus = Text(TextConfig(source="source", target="target", root=str(folder)), ("xx", "yy"))
    encoding = Encoding((tokenizer, tokenizer), 256, "skip")
    imports, began, started = peak(), _cpu(), time.perf_counter()
    build_store(folder / "store", corpus, encoding, {}, workers=settings["workers"])
    seconds, elapsed = _cpu() - began, time.perf_counter() - started
    size = sum(f.stat().st_size for f in (folder / "store").iterdir())
    several = settings["workers"] > 1
    return {
        "lines/s": round(settings["lines"] / seconds),
        "elapsed lines/s": round(settings["lines"] / elapsed),
        "imports MiB": imports,
        "building MiB": peak(),
        "worker MiB": _peak_of_workers() if several else "",
        "store MiB": round(size / 2**20, 1),
    }


def batch(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    from mtplug.data.pools import StorePools
    from mtplug.data.store import Store
    from mtplug.data.training import TrainingData

    def data() -> TrainingData:
        pools = StorePools([Store(folder / "store")], [1.0], 1, settings["pool"])
        return TrainingData(pools, settings["max_tokens"], 1)

    imports, started = peak(), time.perf_counter()
    training = data()
    remaining = training.remaining()
    training.batch(next(remaining))
    first = time.perf_counter() - started
    padding = training.padding_share()
    began, pairs, tokens = _cpu(), 0, 0
    for planned in itertools.islice(remaining, settings["most"]):
        made = training.batch(planned)
        pairs, tokens = pairs + len(made), tokens + made.target_count
    seconds = _cpu() - began
    if not pairs:
        raise MtplugError("all pairs are in one batch; more lines or fewer max_tokens make several")
    resumed, started = data(), time.perf_counter()
    last = resumed.pools.count - 1
    resumed.restore({"epoch": 1, "sample_offset": 0, "pool": last, "pool_offset": 0})
    resumed.batch(next(resumed.remaining()))
    return {
        "batched pairs/s": round(pairs / seconds),
        "batched tokens/s": round(tokens / seconds),
        "batching imports MiB": imports,
        "batching MiB": peak(),
        "first batch s": round(first, 3),
        "resumed s": round(time.perf_counter() - started, 3),
        "padding": round(padding, 4),
        "pools": training.pools.count,
    }


@mtplug.hookimpl
def register_benchmarks(register):
    register("data", DataSuite, DataSuiteConfig)


if __name__ == "__main__":
    acts = {"train": train, "build": build, "batch": batch}
    try:
        found = acts[sys.argv[1]](Path(sys.argv[2]), json.loads(sys.argv[3]))
    except MtplugError as error:
        sys.exit(str(error))
    print(json.dumps(found))
