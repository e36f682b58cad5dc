"""A part of a model that nobody else meets, over the same tensors."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

from torch import nn

Root = TypeVar("Root", bound=nn.Module)
Part = TypeVar("Part", bound=nn.Module)


def with_own(root: Root, part: Part) -> tuple[Root, Part]:
    """A model that computes as `root` does, and what stands in it for `part`. Forward pre-hooks and attributes that they
    are given, others who use `root` at the same time do not meet.

    Only `part` and the modules around it are copied; all tensors and the modules beside them are shared.
    """
    made: dict[int, nn.Module] = {}

    def of(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            inner = {n: None if m is None else of(m) for n, m in module._modules.items()}
            around = any(inner[n] is not m for n, m in module._modules.items())
            made[id(module)] = _copied(module, inner) if around or module is part else module
        return made[id(module)]

    return of(root), of(part)  # type: ignore[return-value]


def _copied(module: nn.Module, inner: dict[str, nn.Module | None]) -> nn.Module:
    made = module.__new__(type(module))
    vars(made).update(vars(module))
    hooks = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    vars(made).update({name: OrderedDict(vars(module)[name]) for name in hooks})
    vars(made).update(_modules=inner, _compiled_call_impl=None)  # which calls the one that it is of
    return made
