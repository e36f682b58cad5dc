"""`mtplug-plugins doctor`: is every plugin fit for this mtplug, and what does each cost?"""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
from dataclasses import dataclass, field
from typing import Any

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement

import mtplug
from mtplug.inspection import inspect_afresh
from mtplug.plugins import Plugin, host


@dataclass
class Finding:
    """One plugin, examined.

    Attributes:
        compatible: what its distribution declares about mtplug, such as `>=0.1`; empty: nothing.
        seconds: what loading it takes once the toolkit is imported; None if it was not loaded.
        when: in every run, or only where something of it is named.
        trouble: what is wrong and how to mend it.
        notes: what may become wrong.
    """

    plugin: Plugin
    compatible: str = ""
    seconds: float | None = None
    when: str = "when named"
    trouble: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine() -> list[Finding]:
    """Every plugin, loaded anew in a child process; conflicts are those of this process's host."""
    plugins = host().inspect()
    installed = [p for p in plugins if not p.distribution.startswith("file ")]
    wanted = [p.id for p in installed if p.state != "blocked"]
    fresh = inspect_afresh(wanted, warm=True)
    ours_first = sorted(plugins, key=lambda p: (p.distribution != "mtplug", p.id))
    return [_finding(plugin, fresh.get(plugin.id, vars(plugin))) for plugin in ours_first]


def versions() -> str:
    """The versions that an answer to a question about plugins needs."""
    found = [f"mtplug {mtplug.__version__}", f"Python {platform.python_version()}"]
    found += [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "pluggy")]
    return ", ".join(found)


def _finding(plugin: Plugin, record: dict[str, Any]) -> Finding:
    made = Finding(plugin, seconds=record["seconds"])
    if plugin.state == "blocked":
        made.notes.append("is blocked")
        return made
    if record["hooks"]:
        made.when = "in every run"
    if record["error"]:
        made.trouble.append(f"failed: {record['error']}")
    made.trouble += [
        f"{c}; block one, for example with --block {shlex.quote(plugin.id)}"
        for c in plugin.conflicts
    ]
    made.notes += [
        f"implements {name}, which mtplug {mtplug.__version__} does not have: it is never called"
        for name in record["unknown"]
    ]
    made.notes += [
        f"implements {old}, which is called {mtplug.hookspecs.RENAMED[old]} now"
        for old in record["deprecated"]
    ]
    if plugin.distribution == "mtplug" or plugin.distribution.startswith("file "):
        return made
    needs, unreadable = _requirements(plugin.distribution)
    made.trouble += [f"its metadata requires {text!r}, which cannot be read" for text in unreadable]
    declared = [r for r in needs if r.name.lower() == "mtplug"]
    made.compatible = str(declared[0].specifier) if declared else ""
    if not made.compatible and not made.trouble:
        made.notes.append('declares no version of mtplug; dependencies = ["mtplug>=…"] would')
    made.trouble += [problem for r in needs if (problem := _unmet(r))]
    return made


def _requirements(distribution: str) -> tuple[list[Requirement], list[str]]:
    """Those that count here, and the texts of those that cannot be read."""
    try:
        texts = importlib.metadata.requires(distribution) or []
    except Exception:  # damaged metadata, which is told already
        return [], []
    found, unreadable = [], []
    for text in texts:
        try:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                found.append(needed)
        except (InvalidRequirement, UndefinedEnvironmentName):
            unreadable.append(text)
    return found, unreadable


def _unmet(needed: Requirement) -> str:
    try:
        version = importlib.metadata.version(needed.name)
        if needed.specifier.contains(version, prereleases=True):
            return ""
    except importlib.metadata.PackageNotFoundError:
        return f"needs {needed}, which is not installed: pip install '{needed}'"
    except Exception:  # no version, or none that can be compared
        return f"needs {needed}, but the metadata of {needed.name} is damaged: install it again"
    return f"needs {needed}, but {needed.name} {version} is installed: pip install '{needed}'"
