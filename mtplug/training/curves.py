"""The picture of a run."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mtplug.files import whole_file


def draw(events: list[dict[str, Any]], run_dir: Path, dpi: int = 120) -> None:
    """Write `curves.png` of a run's events."""
    picture = figure(events)
    picture.suptitle(str(run_dir), parse_math=False)
    with whole_file(run_dir / "curves.png") as aside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a folder's name that the font does not have
        picture.savefig(aside, dpi=dpi, format="png")


def svg(events: list[dict[str, Any]]) -> str:
    """The same picture as an SVG element, its text as text."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtplug"}):
        figure(events).savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def figure(events: list[dict[str, Any]]) -> Figure:
    """Loss, scores, learning rate and speed by update, and the parts of the loss, if it has some."""
    train = [e for e in events if e["event"] == "train"]
    valid = [e for e in events if e["event"] == "validation"]
    parts = list(dict.fromkeys(name for e in train for name in e.get("parts", {})))
    rows = 3 if parts else 2
    picture = Figure(figsize=(11, 3.5 * rows), layout="constrained")
    FigureCanvasAgg(picture)
    grid = picture.add_gridspec(rows, 2)
    loss, score, rate, speed = (picture.add_subplot(grid[n // 2, n % 2]) for n in range(4))

    steps = [e["update"] for e in train]
    loss.plot(steps, [e["nll"] for e in train], label="training", color="tab:blue", lw=1)
    loss.plot(
        [e["update"] for e in valid],
        [e["scores"]["loss"] for e in valid],
        label="validation",
        color="tab:orange",
        marker="o",
        ms=3,
    )
    loss.set(title="Negative log-likelihood", ylabel="nats per target token", xlabel="update")
    loss.legend()

    names = [n for n in (valid[-1]["scores"] if valid else {}) if n not in ("loss", "perplexity")]
    for name in names:
        points = [(e["update"], e["scores"][name]) for e in valid if name in e["scores"]]
        score.plot(*zip(*points, strict=True), label=name, marker="o", ms=3)
    best = [e for e in valid if e["best"]]
    if best:
        score.axvline(best[-1]["update"], color="grey", lw=1, ls=":", label="best")
    score.set(title="Validation scores", ylabel="score", xlabel="update")
    if names:
        score.legend()

    rate.plot(steps, [e["lr"] for e in train], color="tab:green")
    rate.set(title="Learning rate", xlabel="update", ylabel="rate")
    speed.plot(steps, [e["tokens_per_second"] for e in train], color="tab:red", lw=1)
    speed.set(title="Speed", xlabel="update", ylabel="target tokens per second")
    speed.set_ylim(bottom=0)
    for name in parts:
        points = [(e["update"], e["parts"][name]) for e in train if name in e.get("parts", {})]
        part = picture.axes[-1] if len(picture.axes) > 4 else picture.add_subplot(grid[2, :])
        part.plot(*zip(*points, strict=True), label=name, lw=1)
        part.set(title="Parts of the training loss", ylabel="mean", xlabel="update")
        part.legend()
    for axes in picture.axes:
        axes.grid(alpha=0.3)
    return picture
