"""Sides of a comparison take turns, so that what a shared machine does meanwhile falls on all of them."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mtplug.errors import MtplugError

if TYPE_CHECKING:
    import torch


class Spent(NamedTuple):
    """Seconds of one piece of work; CPU time is what other work on the machine disturbs least."""

    cpu: float
    wall: float


Side = Callable[[], Spent]
Name = TypeVar("Name", bound=Hashable)


def timed(work: Callable[[], object]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.process_time() - cpu, time.perf_counter() - wall)


def take_turns(
    sides: dict[Name, Side], rounds: int, left_out: list[str]
) -> dict[Name, list[Spent]]:
    """What each side spent in each round, after one round that does not count.

    A side that fails is left out from then on, with all that it spent; its message goes to `left_out`.
    """
    spent: dict[Name, list[Spent]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(spent):
            try:
                taken = sides[name]()
            except MtplugError as error:
                if str(error) not in left_out:
                    left_out.append(str(error))
                del spent[name]
                continue
            if number:
                spent[name].append(taken)
    return spent


def precisions_of(device: torch.device, left_out: list[str]) -> list[str]:
    """fp32 and bf16; where the processor has no instructions for bf16, `left_out` says so."""
    # Here, since `peak` is wanted of processes without torch.
    from mtplug.training.precision import multiplies_bf16

    if multiplies_bf16(device):
        return ["fp32", "bf16"]
    left_out.append("bf16: this processor has no instructions for it")
    return ["fp32"]


def conditions_now() -> dict[str, Any]:
    """How busy the machine is."""
    load = [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None
    return {"load average over 1, 5, 15 minutes": load}


def peak() -> int:
    """MiB that this process held at most; of ru_maxrss a part may be that of the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024)
    return 0


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Of the same rounds, in increasing order."""
    return sorted(a / b for a, b in zip(over, under, strict=True))


def ratio_text(found: list[float]) -> str:
    """Median, and the least and the most in brackets."""
    return f"{statistics.median(found):.2f} ({found[0]:.2f}–{found[-1]:.2f})"


WHOLE, ONE = "all sentences", "one sentence"


def rows_of_beam(
    spent: dict[tuple[str, str], list[Spent]],
    sentences: int,
    beam: int,
    kinds: tuple[str, ...] = ("",),
) -> list[dict[str, Any]]:
    """A row for each side of a comparison of searches: sentences per CPU second, CPU time of one sentence.

    Args:
        spent: by (side, `WHOLE` or `ONE`), as of `take_turns`.
        sentences: of `WHOLE`.
        kinds: ends of names. Of the peers with each end the fastest is what all sides are compared with.
    """
    seconds = {n: [s.cpu for s in taken] for (n, what), taken in spent.items() if what == WHOLE}
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    peers = [name for name in seconds if not name.startswith("mtplug")]
    bests = [
        min(of, key=lambda name: median[name])
        for kind in kinds
        if (of := [name for name in peers if name.endswith(kind)])
    ]
    rows = []
    for name, taken in seconds.items():
        row: dict[str, Any] = {
            "side": name,
            "beam": beam,
            "sentences/s": round(sentences / median[name], 1),
            "least": round(sentences / max(taken), 1),
            "most": round(sentences / min(taken), 1),
        }
        if one := spent.get((name, ONE)):
            row["one sentence, ms"] = round(1000 * statistics.median(s.cpu for s in one), 1)
        row |= {f"times {best}": ratio_text(ratios(seconds[best], taken)) for best in bests}
        rows.append(row)
    return rows


def bars(panels: dict[str, list[dict[str, Any]]], value: str, label: str, file: Path) -> None:
    """Draw `value` of each row, with its `least` and `most`, one panel of bars for each entry."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    longest = max(len(rows) for rows in panels.values())
    figure = Figure(figsize=(5.5 * len(panels), 1.5 + 0.35 * longest), layout="constrained")
    FigureCanvasAgg(figure)
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, rows) in zip(drawn, panels.items(), strict=True):
        values = [r[value] for r in rows]
        errors = [
            [v - r["least"] for v, r in zip(values, rows, strict=True)],
            [r["most"] - v for v, r in zip(values, rows, strict=True)],
        ]
        colours = ["tab:blue" if r["side"].startswith("mtplug") else "tab:grey" for r in rows]
        axes.barh([r["side"] for r in rows], values, xerr=errors, color=colours, capsize=3)
        axes.invert_yaxis()
        axes.set_title(title)
        axes.set_xlabel(label)
    figure.savefig(file, dpi=120)


def bars_of_beams(rows: list[dict[str, Any]], file: Path) -> None:
    """As `bars`, of sentences per CPU second, one panel for each beam."""
    panels = {
        f"beam {beam}" if beam > 1 else "greedy": [r for r in rows if r["beam"] == beam]
        for beam in dict.fromkeys(r["beam"] for r in rows)
    }
    bars(panels, "sentences/s", "sentences per CPU second\n(median, least, most)", file)
