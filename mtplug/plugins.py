"""Discovery of plugins: from installed metadata, each loaded on its own, failures kept apart.

What each plugin registers is known from its inspection (`mtplug.inspection`), so a run imports only
the plugins that it names, and those that take part in every run through lifecycle hooks.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

import mtplug
from mtplug import hookspecs
from mtplug.errors import NoComponent, UserError, did_you_mean
from mtplug.installed import entries
from mtplug.lifecycle import LOAD_ERRORS, Isolated, Manager, first_line
from mtplug.registry import KINDS, Component, Registration, singular

GROUP = "mtplug"
LIFECYCLE = tuple(name for name in vars(hookspecs) if name.startswith("on_"))


@dataclass
class Plugin:
    """One entry point of group `mtplug`, or one file given by `--plugin`."""

    name: str
    distribution: str
    version: str
    value: str
    state: str = "found"
    """found, ok, failed, conflict or blocked"""
    error: str | None = None
    registers: dict[str, list[str]] = field(default_factory=dict)
    hooks: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """hooks marked optional that this version does not have"""
    deprecated: list[str] = field(default_factory=list)
    """hooks implemented under a name that they had in earlier versions"""
    seconds: float | None = None

    @property
    def id(self) -> str:
        return f"{self.distribution}:{self.name}"

    @property
    def identity(self) -> dict[str, str]:
        """What a run or checkpoint records of it."""
        return {"name": self.name, "distribution": self.distribution, "version": self.version}

    @property
    def package(self) -> str:
        """The outermost package that its code is in."""
        if self.distribution.startswith("file "):
            return f"mtplug_file_plugin_{self.name}"
        return self.value.partition(":")[0].partition(".")[0].strip()

    def __str__(self) -> str:
        return f"'{self.name}' ({self.distribution} {self.version})"


class PluginHost:
    """All plugins of this process, and the components that they registered.

    Args:
        block: plugins to leave out, by name, by `distribution:name` or by distribution.
        files: Python files to load as plugins.
    """

    def __init__(self, block: Iterable[str] = (), files: Iterable[str | Path] = ()):
        self.block = {b for b in block if b}
        self.files = [Path(f).resolve() for f in files]
        self.lifecycle = Manager()
        self.hook = Isolated(self)
        self.api_versions = dict(KINDS)
        self._loaded: dict[str, list[Component]] = {}
        self._objects: dict[str, Any] = {}
        self._inspected = False
        self.plugins = {p.id: p for p in self._discover()}
        again = [path for path in self.files if self._load_file(path).state == "failed"]
        for path in again:  # one that fills a kind that a later one defines
            if (plugin := self._load_file(path)).state == "failed":
                raise UserError(f"--plugin {path}: {plugin.error}")

    # --- finding ------------------------------------------------------------------------------

    def _discover(self) -> Iterator[Plugin]:
        for entry in entries(GROUP):
            plugin = Plugin(entry.name, entry.distribution, entry.version, entry.value)
            if self._blocks(plugin):
                plugin.state = "blocked"
            elif entry.damage:
                plugin.state, plugin.error = "failed", entry.damage
            yield plugin

    def _blocks(self, plugin: Plugin) -> bool:
        return bool(self.block & {plugin.name, plugin.id, plugin.distribution})

    def inspect(self) -> list[Plugin]:
        """All plugins, with what each registers or why it failed, without importing any here."""
        if not self._inspected:
            from mtplug.inspection import inspection_of

            self._inspected = True
            pending = [p for p in self.plugins.values() if p.state == "found"]
            for plugin, record in zip(pending, inspection_of(pending), strict=True):
                for key, value in record.items():
                    setattr(plugin, key, value)
        self._mark_conflicts()
        return list(self.plugins.values())

    def _mark_conflicts(self) -> None:
        claims: dict[tuple[str, str], list[Plugin]] = {}
        for plugin in self.plugins.values():
            plugin.conflicts = []
            for kind, names in plugin.registers.items() if plugin.state in _USABLE else ():
                for name in names:
                    claims.setdefault((kind, name), []).append(plugin)
        for (kind, name), claimants in claims.items():
            for plugin in claimants if len(claimants) > 1 else ():
                others = ", ".join(str(p) for p in claimants if p is not plugin)
                plugin.state = "conflict"
                plugin.conflicts.append(f"{singular(kind)} '{name}' is also claimed by {others}")

    # --- loading ------------------------------------------------------------------------------

    def load(self, plugin: Plugin) -> None:
        """Import a plugin and take in what it registers; on failure record why and leave it out."""
        if plugin.id in self._objects or plugin.state in ("blocked", "failed"):
            return
        started = time.perf_counter()
        try:
            self._take(plugin, _import(plugin))
        except LOAD_ERRORS as error:
            plugin.state, plugin.error = "failed", first_line(error)
            plugin.registers, plugin.hooks, plugin.kinds = {}, [], []
            self._loaded.pop(plugin.id, None)
        else:
            plugin.state = "conflict" if plugin.conflicts else "ok"
        plugin.seconds = time.perf_counter() - started

    def _load_file(self, path: Path) -> Plugin:
        if not path.is_file():
            raise UserError(f"--plugin {path}: no such file")
        version = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        plugin = Plugin(path.stem, f"file {path.name}", version, str(path))
        other = self.plugins.get(plugin.id)
        if other and path.samefile(other.value) and other.state != "failed":
            return other
        if other and not path.samefile(other.value):
            raise UserError(
                f"--plugin {path}: another plugin file is called {path.name}; rename one"
            )
        self.plugins[plugin.id] = plugin
        if self._blocks(plugin):
            plugin.state = "blocked"
        self.load(plugin)
        return plugin

    def _take(self, plugin: Plugin, module: Any) -> None:
        # A manager of its own for each plugin: one that is rejected leaves no trace elsewhere
        # (a pluggy manager keeps the name of a plugin that it refused).
        trial = Manager()
        kinds = {name for name in self.api_versions if name not in KINDS}
        for kind in kinds:
            trial.add_hookspecs(_kind_spec(kind))
        _register(trial, module, plugin.id)
        new_kinds: dict[str, str] = {}
        trial.hook.register_kinds(register=lambda kind, help="": new_kinds.update({kind: help}))
        for kind in new_kinds.keys() - self.api_versions.keys():
            trial.add_hookspecs(_kind_spec(kind))
        callers = _checked_callers(trial, module)
        unknown = [c.name for c in callers if not c.has_spec()]
        spelled = {c.name for c in callers if c.has_spec()}
        versions = {**self.api_versions, **dict.fromkeys(new_kinds, 1)}
        written_for = _written_for(module, versions.keys() | {c.name[9:] for c in callers})
        registration = Registration(plugin.id)
        for kind, version in versions.items():
            if f"register_{kind}" not in spelled:
                continue
            if (wanted := written_for.get(kind, 1)) != version:
                raise UserError(
                    f"written for version {wanted} of the kind '{kind}', but mtplug "
                    f"{mtplug.__version__} has version {version}; install a release of "
                    f"{plugin.distribution} made for it"
                )
            getattr(trial.hook, f"register_{kind}")(register=registration.callable_for(kind))
        hooks = sorted(spelled.intersection(LIFECYCLE))
        if hooks:
            self.lifecycle.register(module, name=plugin.id)
        self._objects[plugin.id] = module
        self._loaded[plugin.id] = registration.components
        self.api_versions.update(dict.fromkeys(new_kinds, 1))
        plugin.hooks, plugin.kinds = hooks, sorted(new_kinds)
        plugin.unknown, plugin.deprecated = unknown, trial.renamed
        for old in trial.renamed:
            warnings.warn(
                f"plugin {plugin}: the hook {old} is called {hookspecs.RENAMED[old]} now; the old "
                "name will go",
                FutureWarning,
                stacklevel=2,
            )
        plugin.registers = {}
        for component in registration.components:
            plugin.registers.setdefault(component.kind, []).append(component.name)

    def load_lifecycle(self) -> None:
        """Load the plugins that take part in every run."""
        for plugin in self.inspect():
            if plugin.hooks:
                self.load(plugin)

    # --- using --------------------------------------------------------------------------------

    def kinds(self) -> list[str]:
        """The kinds there are, those that plugins define among them."""
        defined = {kind for p in self.inspect() if p.state in _USABLE for kind in p.kinds}
        return sorted(defined | self.api_versions.keys())

    def names(self, kind: str) -> list[str]:
        """The names that can be chosen for `kind`."""
        usable = [p for p in self.inspect() if p.state in _USABLE]
        return sorted({name for p in usable for name in p.registers.get(kind, ())})

    def component(self, kind: str, name: str) -> Component:
        """The component `name` of `kind`, importing its plugin if need be.

        Raises:
            UserError: two plugins register it, or there is no such kind; `NoComponent`, if nobody registers it or
                its plugin fails.
        """
        plugins = self.inspect()
        for plugin in plugins:  # whoever defines the kind comes before those who fill it
            if kind in plugin.kinds:
                self.load(plugin)
        if kind not in self.kinds():
            raise UserError(f"unknown kind '{kind}'{did_you_mean(kind, self.kinds())}")
        claims = [p for p in plugins if p.state in _USABLE and name in p.registers.get(kind, ())]
        what = f"{singular(kind)} '{name}'"
        if len(claims) > 1:
            installed = [p for p in claims if not p.distribution.startswith("file ")]
            how = (
                f"block one, for example with --block {shlex.quote(installed[-1].id)}"
                if installed
                else "name one"
            )
            raise UserError(f"{what} is claimed by {' and by '.join(map(str, claims))}: {how}")
        if claims:
            self.load(claims[0])
            if claims[0].state == "failed":
                raise NoComponent(
                    f"{what} needs plugin {claims[0]}, which failed: {claims[0].error}"
                )
            for component in self._loaded[claims[0].id]:
                if (component.kind, component.name) == (kind, name):
                    return component
        known = did_you_mean(name, self.names(kind))
        raise NoComponent(f"unknown {what}{known}{self.left_out()}")

    def left_out(self) -> str:
        """For the end of a message about what is missing: the plugins that could have had it."""
        plugins = self.inspect()
        failed = [f"{p} failed: {p.error}" for p in plugins if p.state == "failed"]
        blocked = [str(p) for p in plugins if p.state == "blocked"]
        text = ""
        if failed:
            text += f"; it may be in a plugin that did not load: {'; '.join(failed)}"
        if blocked:
            text += f"; blocked: {', '.join(blocked)}"
        return text

    def provider(self, component: Component) -> dict[str, str]:
        """Name, distribution and version of the plugin that `component` came from."""
        return self.plugins[component.plugin].identity

    def of_module(self, name: str) -> Plugin | None:
        """The plugin from outside whose package a module of this name is in."""
        package = name.partition(".")[0]
        here = (p for p in self.plugins.values() if p.distribution != "mtplug")
        return next((p for p in here if p.package == package), None)

    def require(self, needed: Iterable[dict[str, str]], where: str) -> None:
        """Check that plugins recorded with a run are here.

        Raises:
            NoComponent: one is missing; the message says what to install.
        """
        here = {(p.distribution, p.name): p for p in self.plugins.values()}
        for record in needed:
            dist, name, version = record["distribution"], record["name"], record["version"]
            plugin = here.get((dist, name))
            if plugin is None and dist.startswith("file "):
                copy = Path(where) / "plugins" / dist.removeprefix("file ")
                raise NoComponent(
                    f"{where} was made with a plugin file: add --plugin {copy} (in Python "
                    f"mtplug.plugins.configure(files=['{copy}']))"
                )
            if plugin is None:
                raise NoComponent(
                    f"{where} needs plugin '{name}' of {dist} {version}, which is not installed: "
                    f"pip install {dist}=={version}"
                )
            if plugin.state == "blocked":
                raise NoComponent(f"{where} needs plugin {plugin}, which is blocked")
            if plugin.state == "failed":
                raise NoComponent(f"{where} needs plugin {plugin}, which failed: {plugin.error}")


_USABLE = ("found", "ok", "conflict")
_current: PluginHost | None = None


def configure(block: Iterable[str] = (), files: Iterable[str | Path] = ()) -> PluginHost:
    """Make this process's plugin host; child processes inherit the choice by the environment."""
    global _current
    blocked = [*os.environ.get("MTPLUG_BLOCK", "").split(","), *block]
    loaded = [*os.environ.get("MTPLUG_PLUGIN_FILES", "").split(os.pathsep), *map(str, files)]
    _current = PluginHost(blocked, dict.fromkeys(f for f in loaded if f))
    os.environ["MTPLUG_BLOCK"] = ",".join(sorted(_current.block))
    os.environ["MTPLUG_PLUGIN_FILES"] = os.pathsep.join(map(str, _current.files))
    return _current


def host() -> PluginHost:
    """This process's plugin host."""
    return _current or configure()


def _import(plugin: Plugin) -> Any:
    if plugin.distribution.startswith("file "):
        name = plugin.package
        spec = importlib.util.spec_from_file_location(name, plugin.value)
        if spec is None or spec.loader is None:
            raise UserError(f"{plugin.value} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # so that dataclasses find their module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    entry = importlib.metadata.EntryPoint(plugin.name, plugin.value, GROUP)
    if not entry.pattern.match(plugin.value):
        raise UserError(f"its entry point names no module: '{plugin.value}'")
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        wanted = plugin.value.partition(":")[0].strip()
        if error.name and f"{wanted}.".startswith(f"{error.name}."):
            raise UserError(
                f"{plugin.distribution} is installed, but its module {error.name} is not there (an "
                f"editable install whose source has gone?): install it again, or "
                f"pip uninstall {plugin.distribution}"
            ) from None
        raise


def _register(manager: Manager, module: Any, name: str) -> None:
    """Let pluggy take in a plugin.

    Raises:
        UserError: a function that implements a hook has an argument that the hook does not have.
    """
    try:
        manager.register(module, name=name)
    except pluggy.PluginValidationError as error:
        for hook, spec in vars(hookspecs).items():
            own = getattr(module, hook, None)
            if (
                inspect.isfunction(spec)
                and inspect.isfunction(own)
                and hook.startswith(("register_", "on_"))
            ):
                known = list(inspect.signature(spec).parameters)
                extra = [p for p in inspect.signature(own).parameters if p not in known]
                if extra:
                    raise UserError(
                        f"{hook}({', '.join(extra)}): there is no such argument; {hook} is called with "
                        f"{', '.join(known)}, of which an implementation names those that it uses"
                    ) from None
        raise UserError(" ".join(str(error).split())) from None


def _checked_callers(manager: Manager, module: Any) -> list[Any]:
    """The callers of the hooks that a plugin implements.

    Raises:
        UserError: a hook is unknown, is a wrapper, or lacks the mark of an implementation.
    """
    callers = manager.get_hookcallers(module) or []
    known = {name for name in dir(manager.hook) if not name.startswith("_")}
    for caller in callers:
        implementations = caller.get_hookimpls()
        if not caller.has_spec() and not all(impl.optionalhook for impl in implementations):
            right = {n for n in known if manager.hook.__dict__[n].has_spec()}
            raise UserError(f"unknown hook '{caller.name}'{did_you_mean(caller.name, right)}")
        if any(impl.hookwrapper or impl.wrapper for impl in implementations):
            raise UserError(f"'{caller.name}' is a hook wrapper, which mtplug does not have")
    for name in known - {c.name for c in callers}:
        own = vars(module).get(name)
        if getattr(own, "__module__", "") == module.__name__:
            raise UserError(f"{name} is not marked @mtplug.hookimpl")
    return callers


def _written_for(module: Any, kinds: Iterable[str]) -> dict[str, int]:
    """The versions of kinds that a plugin says it was written for.

    Raises:
        UserError: it names what is no version.
    """
    given = getattr(module, "MTPLUG_API", {})
    said = "MTPLUG_API: expected a mapping of kinds to whole numbers, such as {'architectures': 1}"
    if not isinstance(given, dict):
        raise UserError(f"{said}, got {given!r}")
    for kind, version in given.items():
        if type(version) is not int:
            raise UserError(f"{said}, got {version!r} for {kind!r}")
        if kind not in kinds:
            told = f"MTPLUG_API: unknown kind '{kind}'{did_you_mean(str(kind), kinds)}"
            warnings.warn(f"{module.__name__}: {told}", RuntimeWarning, stacklevel=3)
    return given


def _kind_spec(kind: str) -> ModuleType:
    spec = ModuleType(f"mtplug_kind_{kind}")

    def register_kind(register):
        """A kind defined by a plugin."""

    register_kind.__name__ = f"register_{kind}"
    setattr(spec, register_kind.__name__, hookspecs.hookspec(register_kind))
    return spec
