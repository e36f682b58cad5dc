"""mtplug: a plugin-extensible toolkit for neural machine translation.

`import mtplug` is cheap: submodules, and with them torch, are imported on first use.
"""

import importlib

import pluggy

__version__ = "0.1.0"

hookimpl = pluggy.HookimplMarker("mtplug")
"""Marks a function of a plugin as the implementation of a hook of `mtplug.hookspecs`."""

_SUBMODULES = {
    "architectures", "config", "criteria", "data", "errors", "evaluation", "exporting", "hookspecs",
    "nn",
    "optim", "peft", "plugins", "registry", "search", "tasks", "testing", "training",
}  # fmt: skip


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"mtplug.{name}")
    if name == "load":
        from mtplug.translator import load

        return load
    if name in ("StopRun", "UserError"):
        return getattr(importlib.import_module("mtplug.errors"), name)
    raise AttributeError(f"module 'mtplug' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES, "load", "StopRun", "UserError"])
