"""What plugins register, learnt by importing them in a child process, and remembered.

So listing plugins imports none of them, and one that ends the process takes nobody along. What was
learnt is kept under the plugin's version and its files' times; a failure is never kept, since its cause may
lie outside of the plugin.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mtplug

if TYPE_CHECKING:
    from mtplug.plugins import Plugin

Record = dict[str, Any]
"""What is learnt of a plugin: `_FIELDS`."""

_FIELDS = (
    "state", "error", "registers", "hooks", "kinds", "unknown", "deprecated", "seconds",
)  # fmt: skip


def inspection_of(plugins: list[Plugin]) -> list[Record]:
    """A record for each plugin, from memory where nothing changed."""
    # Once each: most plugins are in the same package, mtplug.
    stamps = {package: _stamp(package) for package in {p.package for p in plugins}}
    keys = [_key(p, stamps[p.package]) for p in plugins]
    cache_file = cache_dir() / "plugins.json"
    try:
        cache = json.loads(cache_file.read_text())
    except (OSError, ValueError):
        cache = {}
    missing = {p.id for p, key in zip(plugins, keys, strict=True) if key not in cache}
    if missing:
        # Whoever defines a kind has to be there for those who fill it.
        defining = {
            p.id for p, k in zip(plugins, keys, strict=True) if cache.get(k, {}).get("kinds")
        }
        fresh = inspect_afresh([p.id for p in plugins if p.id in missing | defining])
        cache.update(
            {k: fresh[p.id] for p, k in zip(plugins, keys, strict=True) if p.id in missing}
        )
        keep = {k: v for k, v in list(cache.items())[-500:] if v["state"] != "failed"}
        with contextlib.suppress(OSError):
            cache_file.parent.mkdir(parents=True, exist_ok=True)
            aside = cache_file.with_name(f"{cache_file.name}.{os.getpid()}")
            aside.write_text(json.dumps(keep))
            aside.replace(cache_file)
    return [cache[key] for key in keys]


def inspect_afresh(ids: list[str], warm: bool = False) -> dict[str, Record]:
    """Records by plugin, nothing remembered; whoever ends the child process is found out and left out.

    Args:
        ids: of plugins.
        warm: import the toolkit first, so that its time is not counted as that of a plugin.
    """
    dead: dict[str, Record] = {}
    while left := [i for i in ids if i not in dead]:
        records, culprit = _in_child(left, warm)
        if records is not None:
            lost = (i for i in left if i not in records)
            return {
                **records,
                **dead,
                **{i: _failure("a fresh Python does not find it") for i in lost},
            }
        for gone in [culprit] if culprit in left else left:
            dead[gone] = _failure("importing it ended the Python process")
    return dead


def _failure(error: str) -> Record:
    lists: Record = {key: [] for key in ("hooks", "kinds", "unknown", "deprecated")}
    return {"state": "failed", "error": error, "registers": {}, **lists, "seconds": None}


def _in_child(ids: list[str], warm: bool) -> tuple[dict[str, Record] | None, str]:
    """Records, or None and the plugin that was being loaded when the child ended."""
    with tempfile.TemporaryDirectory() as folder:
        answer, progress = Path(folder) / "answer.json", Path(folder) / "progress"
        subprocess.run(
            [
                sys.executable,
                "-c",
                _CHILD,
                json.dumps(sys.path),
                answer,
                progress,
                str(int(warm)),
                *ids,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            env={**os.environ, "MTPLUG_PLUGIN_FILES": ""},
        )
        try:
            return json.loads(answer.read_text()), ""
        except (OSError, ValueError):
            return None, progress.read_text() if progress.is_file() else ""


# The child looks where this process looks: by itself it would look in the current folder too, where
# metadata may lie that a build left behind.
_CHILD = """
import sys
del sys.path[0]
import json
sys.path[:] = json.loads(sys.argv[1])
from mtplug.inspection import inspect_here
inspect_here(*sys.argv[2:])
"""


def inspect_here(answer: str, progress: str, warm: str, *ids: str) -> None:
    """What the child does: write records to `answer`, and to `progress` which plugin is being loaded."""
    from mtplug.plugins import PluginHost

    if int(warm):
        with contextlib.suppress(Exception):
            importlib.import_module("mtplug.training.run")
    host = PluginHost()
    wanted = [host.plugins[i] for i in ids if i in host.plugins]
    loadable = [p for p in wanted if p.state == "found"]
    # Twice, for plugins that fill a kind which a later one defines.
    for _ in range(2):
        for plugin in loadable:
            if plugin.state == "failed":
                plugin.state, plugin.error = "found", None
            Path(progress).write_text(plugin.id)
            host.load(plugin)
    records = {p.id: {k: v for k, v in asdict(p).items() if k in _FIELDS} for p in wanted}
    Path(answer).write_text(json.dumps(records))


def _stamp(package: str) -> tuple[int, int]:
    """Changes whenever a file of the package does."""
    newest, count = 0, 0
    with contextlib.suppress(Exception):  # finders of editable installs may raise anything
        spec = importlib.util.find_spec(package)
        roots = list(spec.submodule_search_locations or []) if spec else []
        files = [Path(spec.origin)] if spec and spec.origin and not roots else []
        files += [f for root in roots for f in sorted(Path(root).rglob("*.py"))[:5000]]
        for file in files:
            newest, count = max(newest, file.stat().st_mtime_ns), count + 1
    return newest, count


def _key(plugin: Plugin, stamp: tuple[int, int]) -> str:
    parts = [
        "2",
        sys.prefix,
        sys.version,
        mtplug.__version__,
        plugin.id,
        plugin.version,
        plugin.value,
    ]
    return hashlib.sha256("\0".join([*parts, *map(str, stamp)]).encode()).hexdigest()[:24]


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "mtplug"
