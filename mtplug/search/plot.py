"""A heat map of cross-attention, readable in any script that this machine has a font for."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtplug.errors import UserError

if TYPE_CHECKING:
    from mtplug.translator import Translation

LATIN = "DejaVu Sans"  # matplotlib brings it


def check_plot(path: Path) -> None:
    """Raises `UserError` if matplotlib isn't installed or cannot write such a file."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError('--attention-plot needs matplotlib: pip install "mtplug[plots]"')
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise UserError(
            f"--attention-plot {path}: unknown format '{path.suffix}'; known: {', '.join(sorted(known))}"
        )


def draw_attention(translation: Translation, path: Path) -> list[str]:
    """Draw a translation's attention: its tokens downwards, the source's to the right.

    Args:
        translation: with `attention`.
        path: .png, .pdf or .svg.

    Returns:
        Characters that no font here has.

    Raises:
        UserError: there is no attention to draw, or matplotlib cannot write such a file.
    """
    check_plot(path)
    if translation.attention is None or translation.source_tokens is None:
        raise UserError("--attention-plot: this architecture has no cross-attention to show")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns, rows = map(_shown, (translation.source_tokens, translation.tokens))
    families, missing = fonts(frozenset("".join([*columns, *rows])))
    # A quarter of an inch for each token, so that labels never overlap.
    longest = max(map(len, [*columns, *rows]))
    size = (2.5 + 0.25 * len(columns) + 0.08 * longest, 1.5 + 0.25 * len(rows) + 0.08 * longest)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(translation.attention, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    font: dict[str, Any] = {"family": families, "size": 10}
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontdict=font)
    axes.set_yticks(range(len(rows)), rows, fontdict=font)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    # Lines between the cells, by which the eye finds the label.
    axes.set_xticks([x - 0.5 for x in range(1, len(columns))], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, len(rows))], minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    figure.colorbar(image, ax=axes, shrink=0.6, label="attention")
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # of characters without a font, which are told by the caller
        warnings.simplefilter("ignore")
        figure.savefig(path, dpi=150)
    return missing


def _shown(tokens: list[str]) -> list[str]:
    """Labels: `$` would start a formula, and control characters have no shape."""
    visible = ["".join(c if c.isprintable() else "·" for c in t) for t in tokens]
    return [t.replace("$", r"\$") for t in visible]


@functools.lru_cache(maxsize=64)
def fonts(characters: frozenset[str]) -> tuple[list[str], list[str]]:
    """Families that together have all characters, as far as there are such, and what they lack."""
    from matplotlib import font_manager

    families, missing = [], set(characters)
    manager = font_manager.fontManager
    # Sans-serif ones first, and what people install for CJK.
    known = sorted(
        # matplotlib brings one that has a box for every character.
        {(f.name, f.fname) for f in manager.ttflist if not f.name.startswith("Last Resort")},
        key=lambda f: (f[0] != LATIN, "Sans" not in f[0], "CJK" not in f[0], f),
    )
    for name, file in known:
        if not missing:
            break
        try:
            covered = {c for c in missing if ord(c) in _characters(file)}
        except (OSError, RuntimeError):  # a damaged font
            continue
        if covered or name == LATIN:
            families += [name] if name not in families else []
            missing -= covered
    return families, sorted(missing)


@functools.cache
def _characters(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(file).get_charmap())
