"""Small bar charts as SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mtplug.evaluation.analysis import Bucket
from mtplug.pages import safe

WIDTH, HEIGHT = 700, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 40  # margins


def bars(title: str, below: str, buckets: list[Bucket], names: list[str]) -> str:
    """A group of bars for each bucket, one bar for each system."""
    values = [v for b in buckets for v in b.values if v is not None]
    scale = _Scale(max(values, default=0), len(buckets))
    parts = scale.grid()
    thick = 0.8 * scale.step / len(names)
    for i, bucket in enumerate(buckets):
        for j, value in enumerate(bucket.values):
            if value is None:
                continue
            x = scale.x(i) + (j - len(names) / 2) * thick
            said = f"{names[j]}, {bucket.label}: {value:.2f}"
            parts.append(scale.bar(x, thick * 0.92, value, f"s{j % 6}", said))
        parts.append(
            _text(scale.x(i), HEIGHT - BOTTOM + 16, bucket.label.replace(" and more", "+"))
        )
    return _svg(title, [*parts, _text((WIDTH + LEFT) / 2, HEIGHT - 4, below)])


def difference_bars(title: str, below: str, bins: Sequence[tuple[float, float, int]]) -> str:
    """A histogram of differences around zero."""
    scale = _Scale(max((count for *_, count in bins), default=0), len(bins))
    parts = scale.grid()
    for i, (low, high, count) in enumerate(bins):
        kind = "better" if low > 0 else "worse" if high < 0 else "equal"
        first, last = i == 0, i == len(bins) - 1
        said = f"{low:+g} and above" if last else f"{low:+g} to {high:+g}"
        said = f"below {high:+g}" if first else said
        left, width = scale.x(i) - 0.46 * scale.step, 0.92 * scale.step
        parts.append(scale.bar(left, width, count, kind, f"{said}: {count}"))
        if (i - len(bins) // 2) % 2 == 0:
            mark = "≤" if first else "≥" if last else ""
            middle = (low + high) / 2
            text = "0" if middle == 0 else f"{mark}{middle:+g}".replace("-", "−")
            parts.append(_text(scale.x(i), HEIGHT - BOTTOM + 16, text))
    return _svg(title, [*parts, _text((WIDTH + LEFT) / 2, HEIGHT - 4, below)])


class _Scale:
    """From values and places to pixels."""

    def __init__(self, top: float, groups: int):
        size = 10 ** math.floor(math.log10(top)) if top > 0 else 1
        self.tick = next(t * size for t in (0.25, 0.5, 1, 2.5) if 5 * t * size >= top)
        self.top = self.tick * max(1, math.ceil(top / self.tick))
        self.step = (WIDTH - LEFT - RIGHT) / max(groups, 1)

    def x(self, group: int) -> float:
        return LEFT + (group + 0.5) * self.step

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.top * (HEIGHT - BOTTOM - TOP)

    def grid(self) -> list[str]:
        parts = []
        for i in range(round(self.top / self.tick) + 1):
            y, value = self.y(i * self.tick), i * self.tick
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(_text(LEFT - 6, y + 4, f"{value:g}", "end"))
        return parts

    def bar(self, x: float, width: float, value: float, kind: str, said: str) -> str:
        y = self.y(value)
        return (
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{self.y(0) - y:.1f}"><title>{safe(said)}</title></rect>'
        )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{safe(text)}</text>'


def _svg(title: str, parts: list[str]) -> str:
    said = safe(title)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">'
        f"<title>{said}</title>{''.join(parts)}</svg>"
    )
