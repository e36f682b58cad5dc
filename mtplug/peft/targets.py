"""From roles, names and patterns to the modules and parameters of a model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from mtplug.errors import UserError
from mtplug.peft.base import attached


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by path, those that a method attached left out; a shared one has its first path only."""
    return {
        path: module
        for path, module in model.named_modules()
        if path
        and not attached(path)
        and not (path.endswith("out_proj") and _bypassed(model, path))
    }


def roles_of(model: nn.Module) -> dict[str, str]:
    """Role by path, for a model that tells; also for paths that lead to a shared module."""
    tell: Any = getattr(model, "roles", None)
    return dict(tell()) if tell else {}


def fits(target: str, path: str, role: str) -> bool:
    """Whether a target means a module.

    A target is a module's path or its end, as `q_proj` for every module of that name; or a run of parts of its role, so that `q` and `self.q` mean
    `encoder.self.q`; or a pattern with `*`, `?` or `[…]` for either of them, in which `*` spans dots.
    """
    if any(c in target for c in "*?["):
        return fnmatchcase(path, target) or (bool(role) and fnmatchcase(role, target))
    return f".{path}".endswith(f".{target}") or (bool(role) and f".{target}." in f".{role}.")


def matched(
    model: nn.Module, targets: Iterable[str], kinds: tuple[type, ...], setting: str
) -> dict[str, nn.Module]:
    """Modules of some classes that targets mean, by path, in the model's order.

    Where a target means a module of another class, those of `kinds` inside it are taken.

    Args:
        model: with or without `roles`.
        targets: see `fits`.
        kinds: classes of modules that are wanted.
        setting: for messages, such as `peft.targets`.

    Raises:
        UserError: a target means no module, or none of `kinds`.
    """
    modules, roles = named_modules(model), roles_of(model)
    first = {id(m): path for path, m in modules.items()}
    # A role may be told for a second path of a shared module.
    named = [(path, roles.get(path, ""), modules[path]) for path in modules]
    named += [
        (path, role, model.get_submodule(path))
        for path, role in roles.items()
        if path not in modules and id(model.get_submodule(path)) in first
    ]
    chosen: set[str] = set()
    for target in targets:
        meant = {first[id(m)]: m for path, role, m in named if fits(target, path, role)}
        if not meant:
            known = {part for role in roles.values() for part in runs(role)} | {*modules, *roles}
            raise UserError(f"{setting}: no module is called '{target}'{near(target, known)}")
        found = {
            inner
            for path, module in meant.items()
            for inner, m in modules.items()
            if isinstance(m, kinds) and (inner == path or (
                inner.startswith(path + ".") and not isinstance(module, kinds)))
        }  # fmt: skip
        if not found:
            path, module = next(iter(meant.items()))
            wanted = ", ".join(k.__name__ for k in kinds)
            raise UserError(
                f"{setting}: '{target}' means {path}, a {type(module).__name__}; this method is for {wanted}"
            )
        chosen |= found
    return {path: module for path, module in modules.items() if path in chosen}


def matched_parameters(model: nn.Module, targets: Iterable[str], setting: str) -> set[str]:
    """First names of parameters that targets mean: by name, or by path or role of what holds them.

    A tied parameter is found under each of its names. In patterns the role stands for the path:
    `norm.*` and `*.bias` are patterns, `norm` and `decoder.cross` are roles.

    Raises:
        UserError: a target means no parameter.
    """
    roles = roles_of(model)
    first: dict[int, str] = {}
    every = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not attached(name):
            every.append((name, first.setdefault(id(parameter), name)))
    chosen: set[str] = set()
    for target in targets:
        found = {own for name, own in every if name == target or _inside(target, name, roles)}
        if not found:
            known = {n for n, _ in every} | {r for role in roles.values() for r in runs(role)}
            known |= {f"*.{n.rpartition('.')[2]}" for n, _ in every}
            raise UserError(f"{setting}: no parameter is called '{target}'{near(target, known)}")
        chosen |= found
    return chosen


def _inside(target: str, name: str, roles: dict[str, str]) -> bool:
    """Whether a target means a parameter, or a module that it lies in."""
    if fits(target, name, ""):
        return True
    path, _, last = name.rpartition(".")
    role = roles.get(path, "")
    if role and fits(target, "", f"{role}.{last}"):
        return True
    while path:
        if fits(target, path, roles.get(path, "")):
            return True
        path = path.rpartition(".")[0]
    return False


def runs(role: str) -> list[str]:
    """The targets that mean a role: `a.b.c` gives a, b, c, a.b, b.c, a.b.c."""
    parts = role.split(".")
    n = len(parts)
    return [".".join(parts[i:j]) for i in range(n) for j in range(i + 1, n + 1)]


def near(target: str, known: Iterable[str]) -> str:
    """The tail of a message: names like `target`."""
    ranked = difflib.get_close_matches(target, sorted(set(known)), n=3, cutoff=0.5)
    if not ranked:  # a long path may hold what was meant
        inside = sorted((k for k in known if target.strip("*.") in k), key=len)
        ranked = inside[:3] or sorted(known, key=lambda k: (k.count("."), k))[:12]
    return f"; near: {', '.join(ranked)}"


def with_own_weight(chosen: dict[str, nn.Module], method: str) -> None:
    """Raises `UserError` for a module whose weight is computed from others, as by weight normalisation."""
    for path, module in chosen.items():
        if is_parametrized(module):
            raise UserError(
                f"peft.targets: {path} computes its weight (weight normalisation), which {method} cannot "
                "adapt; name other modules, or use adapter, bitfit or select"
            )


def tied(model: nn.Module, kinds: tuple[type, ...]) -> dict[int, dict[str, nn.Module]]:
    """Modules that share one `weight`, by path, for each weight that several have."""
    groups: dict[int, dict[str, nn.Module]] = {}
    for path, module in named_modules(model).items():
        if isinstance(module, kinds) and not is_parametrized(module):
            groups.setdefault(id(module.weight), {})[path] = module
    return {key: group for key, group in groups.items() if len(group) > 1}


def by_weight(
    model: nn.Module, chosen: dict[str, Any], kinds: tuple[type, ...]
) -> list[dict[str, nn.Module]]:
    """For each weight of the chosen modules all modules that have it, by path."""
    groups = tied(model, kinds)
    found = {id(m.weight): groups.get(id(m.weight), {path: m}) for path, m in chosen.items()}
    return list(found.values())


def collapsed(path: str) -> str:
    """`encoder.3.ffn` as `encoder.*.ffn`, for tables."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)


def _bypassed(model: nn.Module, path: str) -> bool:
    """torch's own attention uses the weight of `out_proj` without calling the module."""
    return isinstance(model.get_submodule(path.rpartition(".")[0]), nn.MultiheadAttention)
