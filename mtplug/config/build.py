"""From a composed tree to checked dataclass instances: a component's dataclass is chosen by its
`name` first, and its fields are checked afterwards, so plugins' fields are checked like our own."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

import mtplug
from mtplug.config.base import GROUPS, lay_base
from mtplug.config.compose import Leaf, Map, Node, Seq, compose, merge, named, parse, plain
from mtplug.config.schema import RunConfig
from mtplug.errors import NoComponent, UserError, did_you_mean
from mtplug.files import read_environment
from mtplug.plugins import host
from mtplug.registry import Component, NoConfig, Selected, absent, field_types, singular, type_name

# What a run needs of these while it trains, it does not need to be translated with.
TRAINING_ONLY = ("criteria", "optimizers", "lr_schedulers", "metrics", "trackers")


def load_config(
    path: Path | None,
    overrides: Sequence[str] = (),
    saved: bool = False,
) -> tuple[RunConfig, dict[str, str]]:
    """The run configuration of a file and overrides, and the origin of every value.

    Args:
        saved: it is a run's own, to be used and not trained: of `TRAINING_ONLY` kinds a component may be
            absent, and is missed when it is built.

    Raises:
        UserError: an unknown key or component, a wrong type, a missing file; one line with place,
            what was expected and the nearest right name.
    """
    origins: dict[str, str] = {}
    tree = lay_base(compose(path, overrides))
    if saved:
        _without_old_defaults(tree)
    place = tree.get("run_dir")
    run_dir = place.text if isinstance(place, Leaf) and not place.null else ""
    if not run_dir:
        run_dir = str(Path("runs") / (path.stem if path else "run"))
        origins["run_dir"] = "name of the configuration file"
    try:
        config = _dataclass(RunConfig, tree, "", origins)
        for selected in () if saved else components_of(config):
            if not selected.component.plugin:
                selected.build()
    except NoComponent as error:
        if not saved and error.of:  # the run that was begun there may tell which plugin had it
            _require_recorded(Path(run_dir), *error.of)
        raise
    _rate_of_method(config, origins)
    if config.training.finetune_from:  # also found from another folder, once the run is saved
        config.training.finetune_from = os.path.abspath(config.training.finetune_from)
    config.run_dir = run_dir
    return config, origins


def components_of(value: Any) -> Iterator[Selected]:
    """Every component that a configuration, or a part of one, names."""
    if isinstance(value, Selected):
        yield value
        yield from components_of(value.config)
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            own = getattr(value, f.name)
            if (kind := f.metadata.get("names")) and own != f.default:
                yield Selected(host().component(kind, own), NoConfig())
            yield from components_of(own)
    elif isinstance(value, list):
        for item in value:
            yield from components_of(item)


def _rate_of_method(config: RunConfig, origins: dict[str, str]) -> None:
    """Where no learning rate is given, that of the PEFT method: it is far from that of training anew."""
    if config.peft is None:
        return
    rate = getattr(config.peft.component.factory, "lr", None)
    given = [origins.get(f"optimizer.{key}", "default") for key in ("name", "lr")]
    if rate is not None and all(origin.startswith("default") for origin in given):
        config.optimizer.config.lr = rate
        origins["optimizer.lr"] = f"default of peft.name={config.peft.name}"


def component_from_overrides(kind: str, name: str, overrides: Sequence[str]) -> Selected:
    """One component outside of a run, with `key=value` settings.

    Raises:
        UserError: as `load_config`.
    """
    tree = compose(None, [f"name={name}", *overrides])
    return _component(kind, None, tree, singular(kind), {}, RunConfig)


def components_from_text(
    kind: str, text: str, option: str
) -> tuple[list[Selected], dict[str, str]]:
    """Components outside of a run, as one value of the command line, and the origin of every setting.

    Args:
        text: names separated by commas; or, from `{` or `[` on, YAML as a configuration's list of components
            has it.
        option: what it was given to, which messages name and paths of the origins begin with.

    Raises:
        UserError: as `load_config`.
    """
    origin = "command line"
    origins: dict[str, str] = {}
    if text.lstrip().startswith(("{", "[")):
        items = _items(parse(text, origin))
    else:
        items = [Leaf(name, False, origin) for n in text.split(",") if (name := n.strip())]
    found = [
        _component(kind, None, item, f"{option}.{i}", origins, RunConfig)
        for i, item in enumerate(items)
    ]
    return found, origins


def component_from_plain(kind: str, plain: dict[str, Any]) -> Selected:
    """The inverse of `to_plain` for one component.

    Raises:
        UserError: as `load_config`.
    """
    tree = parse(yaml.safe_dump(plain), singular(kind))
    return _component(kind, None, tree, singular(kind), {}, RunConfig)


def load_resolved(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that was saved with a run; see `saved` of `load_config`.

    Raises:
        UserError: it is not whole, and as `load_config`.
    """
    missing = {*GROUPS, "training", "search"} - compose(path, []).keys()  # `search` is the last one
    if missing:
        raise UserError(
            f"{path} is damaged: it has no {' and no '.join(sorted(missing))}; restore it, or write it anew: "
            f"mtplug-train CONFIG [key=value …] --print-config > {path}"
        )
    try:
        return load_config(path, overrides, saved=True)[0]
    except UserError as error:
        changed = _versions_since(path.parent) if str(error).startswith(f"{path}:") else ""
        raise type(error)(f"{error}{changed}") from None


def _versions_since(run_dir: Path) -> str:
    """For the end of a message: what a run was made with, where that is not what is here."""
    made = read_environment(run_dir)
    pairs = [("mtplug", made.get("mtplug", mtplug.__version__), mtplug.__version__)]
    here = {(p.distribution, p.name): p.version for p in host().plugins.values()}
    for record in made.get("plugins", []):
        name = record["distribution"]
        if name != "mtplug" and not name.startswith("file "):
            was = record["version"]
            pairs.append((name, was, here.get((name, record["name"]), was)))
    changed = [
        f"{name} {was}, here is {now}" for name, was, now in dict.fromkeys(pairs) if was != now
    ]
    return f" (the run was made with {', '.join(changed)})" if changed else ""


def to_plain(value: Any, free: bool = True) -> Any:
    """A configuration as dictionaries, lists and scalars, in the form that can be read again.

    Args:
        free: with the settings that may change between two parts of a run.
    """
    if isinstance(value, Selected):
        return {"name": value.name, **to_plain(value.config, free)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (f for f in dataclasses.fields(value) if free or not f.metadata.get("free"))
        return {f.name: to_plain(getattr(value, f.name), free) for f in fields}
    if isinstance(value, (list, tuple)):
        return [to_plain(v, free) for v in value]
    if isinstance(value, dict):
        return {k: to_plain(v, free) for k, v in value.items()}
    if isinstance(value, enum.Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return yaml_of(to_plain(config))


def yaml_of(values: dict[str, Any]) -> str:
    """Plain values as the YAML of a configuration."""
    return OmegaConf.to_yaml(OmegaConf.create(_literal(values)))


def _literal(value: Any) -> Any:
    """With a backslash before each `${` of a text, which must not be taken for an interpolation when it is read again."""
    if isinstance(value, dict):
        return {k: _literal(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_literal(v) for v in value]
    # Backslashes before one are doubled, as they would be taken to keep it from being one.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def explain(config: RunConfig, origins: dict[str, str]) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every value."""
    rows: list[tuple[str, str, str]] = []

    def walk(value: Any, path: str, above: str) -> None:
        origin = origins.get(path, above)
        if isinstance(value, dict) and value:
            for key, item in value.items():
                walk(item, f"{path}.{key}" if path else str(key), origin)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):
                walk(item, f"{path}.{index}", origin)
        else:
            shown = "null" if value is None else str(value)
            rows.append((path, shown, origin))

    walk(to_plain(config), "", "default")
    return rows


def _dataclass(
    cls: type, node: Node, path: str, origins: dict[str, str], extra: tuple[str, ...] = ()
) -> Any:
    if isinstance(node, Leaf):
        if not node.null:
            raise UserError(
                f"{node.origin}: {path}: expected a mapping of {cls.__name__} fields, "
                f"got '{node.text}'"
            )
        node = Map()
    if not isinstance(node, Map):
        raise UserError(f"{node.origin}: {path}: expected a mapping, got a list")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = field_types(cls)
    for key, value in node.items():
        if key not in fields and key not in extra:
            known = {*fields, *extra}
            here = f" of {path}" if path else ""
            tail = did_you_mean(key, known)
            if key in {name for base in cls.__mro__[:-1] for name in vars(base)}:
                tail = f"; {cls.__name__}.{key} is no field: write `{key}: TYPE = DEFAULT` in a class with @dataclass"
            raise UserError(f"{_origin(value)}: unknown key '{key}'{here}{tail}")
    values = {}
    for name, f in fields.items():
        inner = f"{path}.{name}" if path else name
        value = _field(f, hints[name], node.get(name), inner, origins, cls)
        if value is not dataclasses.MISSING:
            values[name] = value
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:  # a dataclass's own checks
        where = [_blamed(node, str(error)), *([path] if path else []), str(error)]
        raise UserError(": ".join(where)) from None


def _blamed(node: Map, message: str) -> str:
    """Where a value stands that `message` names; what the command line says came last. If none is given, the
    component that misses it was chosen somewhere."""
    named = [_origin(value) for key, value in node.items() if key in re.findall(r"\w+", message)]
    chosen = _origin(node.get("name", node))
    return "command line" if "command line" in named else next(iter(named), chosen)


def _field(
    f: dataclasses.Field, hint: Any, node: Node | None, path: str, origins: dict, owner: type
) -> Any:
    if kind := f.metadata.get("component"):
        default = f.metadata["default"]
        if (isinstance(node, Leaf) and node.null) or (node is None and default is None):
            origins[path] = node.origin if node else f"default of {owner.__name__}"
            if default is not None:
                raise UserError(f"{origins[path]}: {path} cannot be null; give it a name")
            return None
        given = node if node is not None else Map()
        return _component_or_absent(kind, default, given, path, origins, owner)
    if kind := f.metadata.get("components"):
        origin = f"default of {owner.__name__}"
        preset: list[Node] = [named(Leaf(n, False, origin)) for n in f.metadata["preset"]]
        if node is None:
            origins[path] = origin
        items = preset if node is None else _items(node)
        default = f.metadata["default"]
        paths = [f"{path}.{i}" for i in range(len(items))]
        return [
            _component_or_absent(kind, default, item, p, origins, owner)
            for item, p in zip(items, paths, strict=True)
        ]
    if short := f.metadata.get("entries"):
        (cls,) = typing.get_args(hint)
        if node is None:
            origins[path] = f"default of {owner.__name__}"
        listed = [_entry(short, item) for item in _items(node)]
        return [_dataclass(cls, item, f"{path}.{i}", origins) for i, item in enumerate(listed)]
    if isinstance(node, Map) and node.instead is not None:  # no component stands here
        node = node.instead
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint, node if node is not None else Map(), path, origins)
    if node is None:
        origins[path] = f"default of {owner.__name__}"
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{path} must be given: {owner.__name__} has no default for it")
        return dataclasses.MISSING
    value = _value(hint, node, path)
    if (kind := f.metadata.get("names")) and value != f.default:
        _named(kind, value, path, _origin(node))
    options = f.metadata.get("options")
    if options and value not in options:
        raise UserError(
            f"{_origin(node)}: {path}: '{value}' is none of {', '.join(options)}"
            f"{did_you_mean(str(value), options) if len(options) > 20 else ''}"
        )
    origins[path] = _origin(node)
    return value


def _items(node: Node | None) -> list[Node]:
    """A list's items; anything else stands for a list of one, and nothing for an empty one."""
    if node is None or (isinstance(node, Leaf) and node.null):
        return []
    if isinstance(node, Map) and isinstance(over := node.get("0"), Map):
        only = Map({key: value for key, value in node.items() if key != "0"}, node.origin)
        merge(only, over)  # data.train.0.source=… over a single mapping
        return [only]
    return list(node) if isinstance(node, Seq) else [node]


def _entry(short: str, node: Node) -> Node:
    """An entry as a mapping. A text that a later layer adds settings to stays; one over a mapping replaces it."""
    if isinstance(node, Map) and isinstance(node.instead, Map):
        return Map({short: node["name"], **node.instead}, node.instead.origin)
    if isinstance(node, Map) and node.instead is not None:
        node = node.instead
    return Map({short: node}, node.origin) if isinstance(node, Leaf) else node


def _component(
    kind: str, default: str | None, node: Node, path: str, origins: dict, owner: type
) -> Selected:
    if isinstance(node, Leaf) and not node.null:  # `optimizer: adam` for {name: adam}
        node = named(node)
    if not isinstance(node, Map):
        raise UserError(f"{_origin(node)}: {path}: expected a mapping with 'name'")
    name_node = node.get("name")
    if name_node is None:
        if default is None:
            raise UserError(f"{_origin(node)}: {path}: 'name' is missing")
        name, origin = default, f"default of {owner.__name__}"
    else:
        name, origin = _value(str, name_node, f"{path}.name"), _origin(name_node)
    origins[f"{path}.name"] = origin
    component = _named(kind, name, f"{path}.name", origin)
    if kind == "corpora":
        node = _without_earlier(node, name, default)
    node = _without_foreign(node, component.config)
    return Selected(component, _dataclass(component.config, node, path, origins, extra=("name",)))


def _named(kind: str, name: str, path: str, origin: str) -> Component:
    """The component of a name that stands at `origin`."""
    try:
        return host().component(kind, name)
    except UserError as error:
        _require_recorded(Path(origin).parent, kind, name)
        told = type(error)(f"{origin}: {path}: {error}")
        if isinstance(told, NoComponent):
            told.of = kind, name
        raise told from None


def _component_or_absent(
    kind: str, default: str | None, node: Node, path: str, origins: dict, owner: type
) -> Selected:
    try:
        return _component(kind, default, node, path, origins, owner)
    except NoComponent as error:
        if kind not in TRAINING_ONLY or isinstance(node, Seq):
            raise
        settings = plain(named(node))
        return Selected(absent(kind, settings.pop("name", default), error), settings)


def _require_recorded(run_dir: Path, kind: str, name: str) -> None:
    """Where the configuration that names a component is a run's own, say which plugin of the run is missing."""
    records = read_environment(run_dir).get("plugins", [])
    needed = [r for r in records if name in r.get("components", {kind: [name]}).get(kind, ())]
    host().require(needed, str(run_dir))


def _without_foreign(node: Map, cls: type) -> Map:
    """Leave out the settings of another component whose name a later layer replaced.

    A setting that stands in another place than `name`, in an earlier file, described the
    component chosen there. What stands beside the name or on the command line is checked.
    """
    name = node.get("name")
    if name is None:
        return node
    known = {f.name for f in dataclasses.fields(cls)} | {"name"}
    name_file = _origin(name).rsplit(":", 1)[0]
    kept = {
        k: v
        for k, v in node.items()
        if k in known or _origin(v).rsplit(":", 1)[0] in (name_file, "command line")
    }
    return Map(kept, node.origin)


def _without_earlier(node: Map, name: str, default: str | None) -> Map:
    """Leave out what layers below gave a corpus of another format: keys such as `source` mean another thing there."""
    kept = {
        k: v
        for k, v in node.items()
        if (node.earlier.get(k, name) or default) == name
        or _origin(v) == "command line" == _origin(node["name"])
    }
    return Map(kept, node.origin)


def _without_old_defaults(tree: Map) -> None:
    """Of a run's own configuration, which tells every setting, leave out those with the default of a component whose name
    a later layer replaced: what nobody chose is as the new one has it."""
    for group in dataclasses.fields(RunConfig):
        kind, node = group.metadata.get("component"), tree.get(group.name)
        if (
            not kind
            or not isinstance(node, Map)
            or not isinstance(chosen := node.get("name"), Leaf)
        ):
            continue
        for key, name in node.earlier.items():
            if key not in node or name in (None, chosen.text):
                continue
            with contextlib.suppress(UserError):  # it is of a plugin that is not here
                config = host().component(kind, str(name)).config
                fields = {f.name: f for f in dataclasses.fields(config)}
                if key in fields and _is_default(fields[key], field_types(config)[key], node[key]):
                    del node[key]


def _is_default(field: dataclasses.Field, hint: Any, node: Node) -> bool:
    if field.metadata.keys() & {"component", "components", "entries"}:
        return False
    made = field.default_factory
    default = field.default if made is dataclasses.MISSING else made()
    return bool(_value(hint, node, field.name) == default)


def _origin(node: Node) -> str:
    if isinstance(node, Leaf) or node.origin:
        return node.origin or "configuration"
    inner = node.values() if isinstance(node, Map) else node
    return next((_origin(n) for n in inner), "configuration")


_TRUE, _FALSE = {"true", "yes", "on"}, {"false", "no", "off"}


def _value(hint: Any, node: Node, path: str) -> Any:
    """One value of a type that a dataclass's field states."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return plain(node)
    if hint in (list, tuple, dict, set, frozenset) or origin in (set, frozenset):
        raise UserError(
            f"{path}: settings cannot be of type {type_name(hint)}; declare list[T], tuple[T, ...] or dict[str, T]"
        )
    if origin in (typing.Union, types.UnionType):
        if isinstance(node, Leaf) and node.null and type(None) in args:
            return None
        for option in (a for a in args if a is not type(None)):
            try:
                return _value(option, node, path)
            except UserError as error:
                last = error
        raise last
    if origin in (list, tuple):
        if not isinstance(node, Seq):
            raise _wrong(node, path, "a list")
        if origin is tuple and args[-1] is not Ellipsis:
            if len(node) != len(args):
                raise _wrong(node, path, f"a list of {len(args)}", f"one of {len(node)}")
            return tuple(
                _value(hint, item, f"{path}.{i}")
                for i, (hint, item) in enumerate(zip(args, node, strict=True))
            )
        items = [_value(args[0], item, f"{path}.{i}") for i, item in enumerate(node)]
        return items if origin is list else tuple(items)
    if origin is dict:
        if not isinstance(node, Map):
            raise _wrong(node, path, "a mapping")
        return {k: _value(args[1], v, f"{path}.{k}") for k, v in node.items()}
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, node, path, {})  # type: ignore[arg-type]
    if not isinstance(node, Leaf):
        raise _wrong(node, path, _type_name(hint))
    text = node.text
    if origin is typing.Literal:
        for option in args:
            if text == str(option):
                return option
        raise _wrong(node, path, f"one of {', '.join(map(str, args))}")
    if node.null:
        raise _wrong(node, path, _type_name(hint))
    try:
        if hint is bool:
            if text.lower() in _TRUE | _FALSE:
                return text.lower() in _TRUE
            raise ValueError
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return hint[text]
        return hint(text)
    except (ValueError, KeyError):
        raise _wrong(node, path, _type_name(hint)) from None


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(m.name for m in hint)}"
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _wrong(node: Node, path: str, expected: str, got: str = "") -> UserError:
    if not got and isinstance(node, Leaf):
        got = "null" if node.null else f"'{node.text}'"
    got = got or ("a mapping" if isinstance(node, Map) else "a list")
    return UserError(f"{_origin(node)}: {path}: expected {expected}, got {got}")
