"""Calling hooks: an old name stands for the new one, and a plugin that raises in a run does not end it."""

from __future__ import annotations

import functools
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from mtplug import hookspecs
from mtplug.errors import StopRun, UserError

if TYPE_CHECKING:
    from mtplug.plugins import PluginHost

LOAD_ERRORS = (Exception, SystemExit)
"""What a plugin may raise without taking the process along."""


class Manager(pluggy.PluginManager):
    """Takes an implementation of a hook's old name for one of the new name."""

    def __init__(self) -> None:
        super().__init__("mtplug")
        self.add_hookspecs(hookspecs)
        self.renamed: list[str] = []

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        options = super().parse_hookimpl_opts(plugin, name)
        if options is not None and name in hookspecs.RENAMED:
            options["specname"] = hookspecs.RENAMED[name]
            self.renamed.append(name)
        return options


class Isolated:
    """`host.hook.on_update_end(trainer=…, …)` calls every plugin's hook, each kept from harming the run.

    Attributes:
        failed: what was reported, by plugin and hook, whichever run it was in.
    """

    def __init__(self, host: PluginHost):
        self._host = host
        self.failed: dict[tuple[str, str], str] = {}
        self._told: set[tuple[str, str]] = set()

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._call, name)

    def _call(self, name: str, **values: Any) -> None:
        """Call them, the last registered first, as pluggy does.

        Raises:
            StopRun: a plugin raised it; the message names the plugin.
        """
        if name == "on_train_start":  # another run of this process is told of failures too
            self._told = set()
        for impl in reversed(getattr(self._host.lifecycle.hook, name).get_hookimpls()):
            plugin = self._host.plugins[impl.plugin_name]
            try:
                impl.function(*(values[argument] for argument in impl.argnames))
            except StopRun as error:
                raise StopRun(f"plugin {plugin} stopped the run in {name}: {error}") from error
            except LOAD_ERRORS as error:
                if (impl.plugin_name, name) in self._told:
                    continue
                text = f"plugin {plugin} failed in {name}, and the run goes on: {first_line(error)}"
                self._told.add((impl.plugin_name, name))
                self.failed[impl.plugin_name, name] = text
                values["trainer"].emit("note", text=text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message and where it was raised."""
    if isinstance(error, UserError):
        return str(error)
    shown = traceback.format_exception_only(type(error), error)
    # Of a syntax error the lines before show where it is.
    line = shown[-1 if isinstance(error, SyntaxError) else 0].strip().splitlines()[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = (frames[-1].filename, frames[-1].lineno) if frames else None
    if isinstance(error, SyntaxError) and not (error.filename or "").startswith("<"):
        # The frames end in what read the file, not in the file.
        place = (error.filename, error.lineno) if error.filename else None
    return f"{line} ({Path(place[0]).name}:{place[1]})" if place else line
