"""Sizes and times as people read them."""

from __future__ import annotations


def memory(size: int | None) -> str:
    """Bytes, in MiB or GiB."""
    size = size or 0
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.{1 if seconds < 10 else 0}f} seconds"
