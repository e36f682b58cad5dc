"""Receivers of a run's events: metrics.jsonl, the console, curves.png."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtplug
from mtplug.files import write_whole
from mtplug.registry import NoConfig
from mtplug.training.units import duration

EVENTS = {
    "start": ("parameters", "trainable", "device", "processes"),
    "train": ("epoch", "loss", "nll", "lr", "gradient_norm", "tokens_per_second", "padding",
              "seconds_left", "seconds"),
    "largest_batch": ("text", "pairs", "tokens", "halved", "peak_bytes"),
    "validation": ("epoch", "scores", "best"),
    "checkpoint": ("path",),
    "note": ("text",),
    "end": ("text", "reason"),
    "test": ("split", "checkpoint", "scores", "texts"),
}  # fmt: skip
"""What every event of a kind has beside `update`; kinds of plugins' own have what they like."""


class Tracker:
    """Is told of everything that a run finds worth telling.

    An event is a kind, one of `EVENTS` or a plugin's own, and values, among them `update`. Values are JSON's types. One
    of training has `parts` where the criterion tells some (`Loss.parts`): their means by name. One that raises at an event is reported by the others,
    once, and the run goes on without it.

    Attributes:
        essential: the run ends instead, since it could not be gone on with without what is written here.
    """

    essential = False

    def __init__(self, config: Any, run_dir: Path):
        self.config, self.run_dir = config, run_dir

    def start(self, update: int, max_updates: int) -> None:
        """A process starts or resumes after `update`; later events of an earlier one are void."""

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """Something happened."""

    def close(self) -> None:
        """Nothing more will come."""


class JsonLines(Tracker):
    """metrics.jsonl: one JSON object for each event. Pages are made from it, and what was scored is known by it."""

    essential = True

    def start(self, update: int, max_updates: int) -> None:
        path = self.run_dir / "metrics.jsonl"
        kept = (
            [e for e in read_events(path) if e.get("update", 0) <= update and e["event"] != "end"]
            if update
            else []
        )
        write_whole(path, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in kept))
        self.file = path.open("a", encoding="utf-8")

    def event(self, kind: str, values: dict[str, Any]) -> None:
        entry = {"event": kind, "time": round(time.time(), 3), **values}
        self.file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a metrics.jsonl, without a last line that was cut off; what else is none is told and left out."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = [_event(line) for line in text.split("\n")]
    if strange := [n for n, event in enumerate(found[:-1], start=1) if event is None]:
        print(
            f"{path}:{strange[0]}: no event ({len(strange)} such lines); left out", file=sys.stderr
        )
    return [event for event in found if event is not None]


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(event, dict) and isinstance(event.get("event"), str)
    return event if whole and isinstance(event.get("update", 0), int) else None


class Console(Tracker):
    """A progress bar with rate and time left; plain lines where the output is no terminal."""

    def start(self, update: int, max_updates: int) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.out = RichConsole(stderr=True, highlight=False)
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("updates"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.out,
            )
            self.bar.start()
            self.row = self.bar.add_task("training", total=max_updates, completed=update)

    def event(self, kind: str, values: dict[str, Any]) -> None:
        update = values.get("update", 0)
        if kind == "train":
            parts = "".join(f"{k} {v:.3g}  " for k, v in values.get("parts", {}).items())
            line = (
                f"epoch {values['epoch']}  loss {values['loss']:.3f}  {parts}"
                f"{values['tokens_per_second']:,.0f} tokens/s"
            )
            if self.bar is not None:
                self.bar.update(self.row, completed=update, description=line)
            else:
                left = values["seconds_left"]
                time_left = f"  at most {duration(left)} left" if left else ""
                self.say(f"update {update:>6}  {line}  lr {values['lr']:.2e}{time_left}")
        elif kind == "validation":
            scores = "  ".join(
                f"{k} {v:.2f}" for k, v in values["scores"].items() if k != "perplexity"
            )
            star = "  (best so far)" if values["best"] else ""
            self.say(f"update {update:>6}  validation: {scores}{star}")
            for label, own in values.get("corpora", {}).items():
                numbers = "  ".join(f"{k} {v:.2f}" for k, v in own.items())
                self.say(f"{'':15}  {label}: {numbers}")
        elif kind in ("note", "largest_batch", "end"):
            self.say(values["text"])

    def say(self, text: str) -> None:
        self.out.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


@dataclass
class CurvesConfig:
    """curves.png: loss, scores, learning rate and speed; needs matplotlib."""

    dpi: int = 120


class Drawn(Tracker):
    """Draws what the run's folder holds: after a validation, unless that is `PAUSE` seconds or less after the last
    drawing was done, and whenever a kind of `ALWAYS` is told."""

    PAUSE = 20.0
    ALWAYS: tuple[str, ...] = ("end",)

    def __init__(self, config: Any, run_dir: Path):
        super().__init__(config, run_dir)
        self.done = -math.inf

    def event(self, kind: str, values: dict[str, Any]) -> None:
        due = kind == "validation" and time.monotonic() - self.done > self.PAUSE
        if due or kind in self.ALWAYS:
            self.draw()
            self.done = time.monotonic()

    def draw(self) -> None:
        raise NotImplementedError


class Curves(Drawn):
    """Draws metrics.jsonl."""

    config: CurvesConfig

    def __init__(self, config: CurvesConfig, run_dir: Path):
        super().__init__(config, run_dir)
        self.available = True

    def draw(self) -> None:
        if not self.available:
            return
        try:
            from mtplug.training.curves import draw
        except ImportError:
            self.available = False
            print("curves.png is not drawn: pip install matplotlib", file=sys.stderr)
            return
        draw(read_events(self.run_dir / "metrics.jsonl"), self.run_dir, self.config.dpi)


@mtplug.hookimpl
def register_trackers(register):
    register("jsonl", JsonLines, NoConfig)
    register("console", Console, NoConfig)
    register("curves", Curves, CurvesConfig)
