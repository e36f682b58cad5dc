"""The entry points of a group in installed distributions, those of damaged ones included.

`importlib.metadata.entry_points` raises for everybody where one distribution's file cannot be read;
here each distribution is read on its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One entry point, and the distribution that it is of.

    Attributes:
        damage: what is wrong with the distribution's metadata, and how to mend it; empty: nothing.
    """

    name: str
    value: str
    distribution: str
    version: str
    damage: str = ""


def entries(group: str) -> Iterator[Entry]:
    """The entry points of `group`. A distribution that lies on sys.path twice counts where it is found first."""
    seen = set()
    for dist in distributions():
        folder = Path(str(getattr(dist, "_path", "?")))  # there is no public way to it
        name, _, version = folder.stem.partition("-")
        if folder.suffix not in (".dist-info", ".egg-info"):  # inside of an .egg
            name, version = _said(dist).get("Name", str(folder)), ""
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in seen:
            continue
        seen.add(key)
        yield from _entries_of(dist, group, folder, key, version)


def _entries_of(
    dist: Distribution, group: str, folder: Path, name: str, version: str
) -> Iterator[Entry]:
    again = f"install {name} again, or remove {folder}"
    try:
        text = dist.read_text("entry_points.txt") or ""
        if not re.search(rf"^\s*\[\s*{group}\s*(\]|$)", text, re.MULTILINE):
            return
        found = [(e.name, e.value) for e in dist.entry_points if e.group == group]
        if not found:
            raise ValueError(f"[{group}] names nothing")
    except Exception as error:  # whatever a parser makes of a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        damage = f"damaged metadata: entry_points.txt cannot be read ({reason}): {again}"
        yield Entry(name, "", name, version or "?", damage)
        return
    said = _said(dist)
    name, version = said.get("Name") or name, said.get("Version") or version or "?"
    whole = said.get("Name") and said.get("Version")
    damage = "" if whole else f"damaged metadata: it gives no name or no version: {again}"
    for entry, value in found:
        yield Entry(entry, value, name, version, damage)


def _said(dist: Distribution) -> dict[str, str]:
    try:
        return {key: dist.metadata[key] for key in ("Name", "Version") if key in dist.metadata}
    except Exception:  # later Pythons raise where there is no file
        return {}
