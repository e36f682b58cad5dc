"""From YAML files (`extends`) and `key=value` overrides to one tree that remembers origins.

Scalars keep the text they were written as, so that a text field gets `no` (Norwegian) and not False.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtplug.errors import UserError


class Map(dict):
    """A YAML mapping.

    Attributes:
        earlier: keys that were set before a layer above gave `name`, and the name that they were set for; None: none
            was given.
        instead: what stands here if it is no component, of which a layer can say the name alone: the later layer.
    """

    instead: Node | None = None

    def __init__(self, content: Mapping[str, Any] = MappingProxyType({}), origin: str = ""):
        super().__init__(content)
        self.origin = origin
        self.earlier: dict[str, str | None] = {}


class Seq(list):
    """A YAML sequence."""

    origin: str = ""


@dataclass
class Leaf:
    """A YAML scalar: its text as written, whether that is null, and where it stands."""

    text: str
    null: bool
    origin: str


Node = Map | Seq | Leaf

MOST, DEEPEST = 100_000, 50
"""Values that a configuration may have, and how deep they may be nested; aliases of YAML could make both endless."""


def compose(path: Path | None, overrides: Sequence[str]) -> Map:
    """The tree of a file, its `extends`, and overrides, interpolations resolved.

    Raises:
        UserError: a file is missing or no YAML, an override has no `=`, an interpolation fails.
    """
    tree = _read(path, ()) if path else Map()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise UserError(f"command line: '{override}' is neither key=value nor an option")
        value = parse(text, "command line")
        for part in reversed(key.strip().split(".")):
            value = Map({part: value}, "command line")
        assert isinstance(value, Map)
        merge(tree, value)
    _interpolate(tree)
    return tree


def merge(below: Map, above: Map) -> None:
    """Lay `above` over `below`, in place; mappings merge, anything else replaces. A text and a mapping merge, too, as
    the short form of a component does with its settings; see `Map.instead`."""
    if "name" in above:
        old = below.get("name")
        name = old.text if isinstance(old, Leaf) else None
        below.earlier = {**dict.fromkeys(below, name), **below.earlier}
    below.earlier = {k: v for k, v in below.earlier.items() if k not in above} | above.earlier
    for key, value in above.items():
        old = below.get(key)
        if isinstance(old, Map) and isinstance(value, Map):
            if isinstance(value.instead, Map) and old.instead is None:
                old.instead = Map(old)
            above_it = value if value.instead is None else value.instead
            if isinstance(old.instead, Map) and isinstance(above_it, Map):
                merge(old.instead, above_it)
            elif old.instead is not None or value.instead is not None:
                old.instead = above_it
            merge(old, value)
        elif _one_text(old, value):
            below[key] = _both(old, value)  # type: ignore[arg-type]
        elif isinstance(old, Seq) and isinstance(value, Map) and all(k.isdigit() for k in value):
            for index, item in value.items():  # data.train.0.weight=2
                if int(index) >= len(old):
                    raise UserError(
                        f"{value.origin}: '{key}' has {len(old)} entries, none numbered {index}"
                    )
                there = old[int(index)]
                if isinstance(item, Map) and isinstance(there, Map):
                    merge(there, item)
                elif _one_text(there, item):
                    old[int(index)] = _both(there, item)  # type: ignore[arg-type]
                else:
                    old[int(index)] = item
        else:
            below[key] = value


def _one_text(old: Node | None, value: Node) -> TypeGuard[Map | Leaf]:
    """Whether of two layers one is a mapping and the other a text."""
    text, other = (old, value) if isinstance(old, Leaf) else (value, old)
    return isinstance(text, Leaf) and not text.null and isinstance(other, Map)


def _both(old: Map | Leaf, value: Map | Leaf) -> Map:
    both = named(old)
    merge(both, named(value))
    both.instead = value
    return both


def named(node: Map | Leaf) -> Map:
    """`{name: adam}` for `adam`."""
    if isinstance(node, Map):
        return node
    return Map({"name": node}, node.origin)


def _read(path: Path, seen: tuple[Path, ...], by: str = "") -> Map:
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself, through {' and '.join(map(str, seen))}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if "=" in str(path):
            raise UserError(
                f"{path}: this is a setting; the configuration file must come first"
            ) from None
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; in that folder: {', '.join(near[:8])}" if near else ""
        raise UserError(f"{by}{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    tree = parse(text, str(path))
    if isinstance(tree, Leaf) and tree.null:
        tree = Map()
    if not isinstance(tree, Map):
        raise UserError(f"{path}: expected a mapping of configuration groups")
    bases = tree.pop("extends", None)
    if bases is None:
        return tree
    below = Map(origin=tree.origin)
    for base in bases if isinstance(bases, Seq) else [bases]:
        if not isinstance(base, Leaf):
            raise UserError(f"{bases.origin}: extends takes a file or a list of files")
        by = f"{base.origin}: extends: "
        merge(below, _read(path.parent / base.text, (*seen, path.resolve()), by))
    merge(below, tree)
    return below


def parse(text: str, source: str) -> Node:
    """The tree of a YAML text; `source` is what messages call it."""
    try:
        node = _parsed(text)
    except RecursionError:
        raise UserError(f"{source}: {_TOO_DEEP}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark and source != "command line" else source
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}: no valid YAML: {problem}") from None
    if node is None:
        return Leaf("", True, source)
    _check_size(node, source)
    return _convert(node, source)


@functools.lru_cache(64)
def _parsed(text: str) -> yaml.Node | None:
    """One command reads a run's configuration, and its base's, several times; the nodes are only looked at."""
    return yaml.compose(text, Loader=yaml.SafeLoader)


_TOO_DEEP = f"values are nested more than {DEEPEST} deep"


def _check_size(root: yaml.Node, source: str) -> None:
    """Raises `UserError` where aliases make a tree endless, or larger than any configuration is."""
    waiting, count = [(root, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > DEEPEST or count > MOST:
            why = _TOO_DEEP if depth > DEEPEST else f"more than {MOST:,} values"
            raise UserError(f"{_line(node, source)}: {why}")
        if isinstance(node, yaml.SequenceNode):
            waiting += [(item, depth + 1) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            waiting += [(value, depth + 1) for _, value in node.value]


def _line(node: yaml.Node, source: str) -> str:
    return f"{source}:{node.start_mark.line + 1}" if source != "command line" else source


def _convert(node: yaml.Node, source: str) -> Node:
    line = _line(node, source)
    if isinstance(node, yaml.ScalarNode):
        try:
            node.value.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{line}: half of a surrogate pair (\\ud800 to \\udfff) is no character"
            ) from None
        plain_null = node.style is None and node.tag == "tag:yaml.org,2002:null"
        return Leaf(node.value, plain_null, line)
    if isinstance(node, yaml.SequenceNode):
        seq = Seq(_convert(item, source) for item in node.value)
        seq.origin = line
        return seq
    result = Map(origin=line)
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{_line(key, source)}: a key must be a text, not a list or a mapping")
        if key.value in result:
            raise UserError(f"{_line(key, source)}: '{key.value}' is given twice")
        result[key.value] = _convert(value, source)
        if isinstance(result[key.value], (Map, Seq)) and source != "command line":
            result[key.value].origin = f"{source}:{key.start_mark.line + 1}"
    return result


def plain(node: Node) -> Any:
    """The tree as dictionaries, lists and text."""
    if isinstance(node, Map):
        return {k: plain(v) for k, v in node.items()}
    if isinstance(node, Seq):
        return [plain(v) for v in node]
    return None if node.null else node.text


def _interpolate(tree: Map) -> None:
    leaves: list[Leaf] = []

    def walk(node: Node) -> None:
        if isinstance(node, Leaf):
            if "${" in node.text:
                leaves.append(node)
            return
        for child in node.values() if isinstance(node, Map) else node:
            walk(child)

    walk(tree)
    if not leaves:
        return
    for leaf in leaves:
        with _resolving(leaf):
            OmegaConf.create([leaf.text])  # which says what is no interpolation at all
    whole = OmegaConf.create(plain(tree))

    def component(match: re.Match[str]) -> str:
        """Its name, of which alone it may consist."""
        found = OmegaConf.select(whole, match[1])
        return str(found["name"]) if isinstance(found, DictConfig) and "name" in found else match[0]

    for leaf in leaves:
        with _resolving(leaf):
            whole["__leaf__"] = re.sub(r"(?<!\\)\$\{([\w.]+)\}", component, leaf.text)
            leaf.text = str(whole["__leaf__"])


@contextlib.contextmanager
def _resolving(leaf: Leaf) -> Iterator[None]:
    try:
        yield
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{leaf.origin}: '{leaf.text}' cannot be resolved: {first} "
            "(only values that a file or the command line sets can be referred to)"
        ) from None
