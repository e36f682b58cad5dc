"""Components: a kind and a name lead to a factory, its configuration dataclass and its plugin."""

import ast
import dataclasses
import functools
import inspect
import math
import pkgutil
import re
import textwrap
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mtplug.errors import UserError

# The version of the contract that each kind's components are written to. It rises when a change
# would break a component written for the one before.
KINDS: dict[str, int] = {
    "architectures": 1,
    "criteria": 1,
    "tasks": 1,
    "peft_methods": 1,
    "position_encodings": 1,
    "attention_backends": 1,
    "tokenizers": 1,
    "corpora": 1,
    "optimizers": 1,
    "lr_schedulers": 1,
    "search_strategies": 1,
    "metrics": 1,
    "trackers": 1,
    "exporters": 1,
    "benchmarks": 1,
}

# Kinds whose components have settings in common, which tasks read: each dataclass derives from this one.
CONFIGS = {"corpora": "mtplug.data.corpora:CorpusConfig"}

_IRREGULAR = {"criterion": "criteria", "corpus": "corpora", "search_strategy": "search_strategies"}


def plural(kind: str) -> str:
    """`architecture` or `architectures` to `architectures`; a first word, such as `peft`, is enough."""
    if kind in _IRREGULAR:
        return _IRREGULAR[kind]
    for many in KINDS:
        if many.startswith(f"{kind}_"):
            return many
    return kind if kind.endswith("s") or kind in _IRREGULAR.values() else kind + "s"


def singular(kind: str) -> str:
    for one, many in _IRREGULAR.items():
        if kind == many:
            return one
    return kind.removesuffix("s")


@dataclass
class NoConfig:
    """No settings."""


@dataclass(frozen=True)
class Component:
    """What a plugin registered under one name of one kind."""

    kind: str
    name: str
    factory: Callable[..., Any]
    config: type
    plugin: str


@dataclass
class Selected:
    """A component chosen by a run's configuration, with its checked settings."""

    component: Component
    config: Any

    @property
    def name(self) -> str:
        return self.component.name

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """What the component's factory makes of its settings and `args`.

        Raises:
            UserError: the factory does not take such arguments.
        """
        try:
            return self.component.factory(self.config, *args, **kwargs)
        except TypeError as error:
            if error.__traceback__ and error.__traceback__.tb_next:  # raised inside of it
                raise
            kind = singular(self.component.kind)
            raise UserError(
                f"{kind} '{self.name}' of plugin {self.component.plugin} cannot be made: {error}; "
                f"mtplug-plugins docs {kind} tells how its factory is called"
            ) from error


def absent(kind: str, name: str, why: UserError) -> Component:
    """What stands for a component that is not here, of no plugin: building it raises `why`."""

    def factory(*args: Any, **kwargs: Any) -> Any:
        raise why

    return Component(kind, name, factory, NoConfig, "")


class Registration:
    """The `register` callables given to one plugin's hooks, and what was registered through them.

    Nothing enters the toolkit until all of the plugin's hooks have succeeded.
    """

    def __init__(self, plugin: str):
        self.plugin = plugin
        self.components: list[Component] = []

    def callable_for(self, kind: str) -> Callable[..., None]:
        def register(name: str, factory: Callable[..., Any], config: type | None = None) -> None:
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
                raise UserError(f"{kind}: {name!r} is no name; use letters, digits, '_', '-', '.'")
            if not callable(factory):
                raise UserError(f"{kind}: the factory of '{name}' is not callable: {factory!r}")
            if config is not None and not (
                isinstance(config, type) and dataclasses.is_dataclass(config)
            ):
                raise UserError(f"{kind}: the config of '{name}' is not a dataclass: {config!r}")
            if config and "name" in (f.name for f in dataclasses.fields(config)):
                raise UserError(f"{kind}: the config of '{name}' has a field 'name', which in a configuration is "
                                "the component's own name; call it otherwise")  # fmt: skip
            common = pkgutil.resolve_name(CONFIGS[kind]) if kind in CONFIGS else None
            if common and config and not issubclass(config, common):
                raise UserError(f"{kind}: {config.__name__}, the config of '{name}', does not derive from "
                                f"{common.__module__}.{common.__name__}")  # fmt: skip
            if any(c.kind == kind and c.name == name for c in self.components):
                raise UserError(f"{kind}: '{name}' is registered twice by the same plugin")
            chosen = config or common or NoConfig
            self.components.append(Component(kind, name, factory, chosen, self.plugin))

        return register


# --- fields of configuration dataclasses ------------------------------------------------------


def component_field(kind: str, default: str | None) -> Any:
    """A dataclass field that holds one component: in YAML a mapping with `name` and its settings.

    After loading, the field's value is a `Selected`, or None where `default` is None and nothing
    was chosen.
    """
    return field(default=None, metadata={"component": kind, "default": default})


def component_list_field(kind: str, default: str, preset: tuple[str, ...] = ()) -> Any:
    """A field that holds a list of components; a single mapping stands for a list of one.

    An entry without `name` is a `default`; `preset` names the entries when nothing is given.
    """
    metadata = {"components": kind, "default": default, "preset": preset}
    return field(default_factory=list, metadata=metadata)


def entries_field(short: str) -> Any:
    """A field that holds a list of a plain dataclass; one mapping stands for a list of one, and a bare text
    for a mapping that sets only the field `short`."""
    return field(default_factory=list, metadata={"entries": short})


def component_name(kind: str, default: str) -> Any:
    """A text field that is `default` or the name of a component, which is then built with its default settings."""
    return field(default=default, metadata={"names": kind})


def run_field(*groups: str) -> Any:
    """For the settings of a task: the folder of another run, whose `groups` hold where a configuration says nothing else."""
    return field(default="", metadata={"lends": groups})


def choice(default: str, *options: str) -> Any:
    """A text field that takes one of `options`."""
    return field(default=default, metadata={"options": (default, *options)})


def per_run(default: Any) -> Any:
    """A setting of a tokenizer that changes neither ids nor text's pieces, such as the language that a text is said to be of:
    a run that fine-tunes another one may have another value than its base."""
    return field(default=default, metadata={"per_run": True})


def per_run_settings(selected: Selected) -> dict[str, Any]:
    """The values of those fields of a component."""
    fields = dataclasses.fields(selected.config)
    return {f.name: getattr(selected.config, f.name) for f in fields if f.metadata.get("per_run")}


def free(value: Any) -> Any:
    """A field that decides no result, so that it may change between two parts of a run; `value` is its default, or
    what one of the functions above gives."""
    made = value if isinstance(value, dataclasses.Field) else field(default=value)
    made.metadata = types.MappingProxyType({**made.metadata, "free": True})
    return made


def require_range(config: Any, low: float, high: float, *names: str) -> None:
    """For a dataclass's `__post_init__`: ValueError if a field, or an entry of one that is a list, is not from
    `low` to `high` (NaN is not)."""
    for name in names:
        given = getattr(config, name)
        for value in given if isinstance(given, list) else [given]:
            if not low <= value <= high or value == math.inf:
                limits = f"from {low} to {high}" if high < math.inf else f"at least {low}"
                limits += " and finite" if value == math.inf == high else ""
                raise ValueError(f"{name} must be {limits}, not {value}")


def require_fraction(config: Any, *names: str) -> None:
    """As `require_range`: from 0 on, but below 1, as probabilities of dropping and decay rates of averages are."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(config, name)}")


def type_name(hint: Any) -> str:
    """`list[str]`, `int | None`, `low | high`: a field's type as one writes it."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType, typing.Literal):
        return " | ".join(a if isinstance(a, str) else type_name(a) for a in arguments)
    if arguments or not isinstance(hint, type):
        return str(hint).replace("typing.", "")
    return "None" if hint is type(None) else hint.__name__


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass.

    Raises:
        UserError: one is of a name that there is not.
    """
    try:
        return typing.get_type_hints(cls)
    except NameError as error:
        raise UserError(f"the types of the settings {cls.__module__}.{cls.__qualname__} cannot be found: {error}; "
                        "import them where the module itself runs, too") from None  # fmt: skip


@functools.cache
def field_help(cls: type) -> dict[str, str]:
    """The docstring below each field of a dataclass and of its bases, else its metadata's `help`."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):
            continue
        body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
        for here, below in zip(body, body[1:], strict=False):
            if (
                isinstance(here, ast.AnnAssign)
                and isinstance(here.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                found[here.target.id] = inspect.cleandoc(below.value.value)
    for f in dataclasses.fields(cls):
        if f.metadata.get("help"):
            found.setdefault(f.name, str(f.metadata["help"]))
    return found
