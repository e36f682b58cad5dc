"""Adapters and their base as one model, and weighted sums of adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtplug.architectures.base import Model
from mtplug.config.build import to_plain
from mtplug.errors import UserError
from mtplug.peft import files
from mtplug.peft.base import UnfusedOutput, attached, changes


@torch.no_grad()
def merge(model: Model) -> Model:
    """Let a model's own weights do what is attached to it, and take that off; in place.

    Tied weights stay tied. Outputs are the same up to rounding.

    Raises:
        UserError: a method cannot be merged; the model is then half merged, and no longer of use.
    """
    seen: set[int] = set()
    found = changes(model)
    for _, module, own in found:
        for change in own:
            if id(change) not in seen:
                seen.add(id(change))
                change.merge(module)
    for _, module, own in found:
        for change in own:
            change.detach_from(module)
    before = model.names_before
    strange = [
        name
        for name, _ in model.named_parameters()
        if attached(name) or (before is not None and name not in before)
    ]
    if strange:
        raise UserError(f"{strange[0]} cannot be merged: its method says nothing of how")
    if UnfusedOutput in type(model).__bases__:
        model.__class__ = type(model).__bases__[1]
    model.base_names = frozenset()
    return model.requires_grad_(True)


@dataclass
class Part:
    """One adapter of a weighted sum.

    Attributes:
        weight: its factor.
        settings: of its method.
        tensors: with bare names.
    """

    weight: float
    settings: Any
    tensors: dict[str, Tensor]


def weighted_sum(
    folders: list[Path], weights: list[float], base: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Several adapters of one method and one base as one.

    Args:
        folders: of the adapters.
        weights: a factor for each.
        base: weights of the base, by name.

    Returns:
        Tensors with bare names, and the description.

    Raises:
        UserError: methods, settings or bases differ, or the method has no sums.
    """
    described = [files.read_config(folder) for folder in folders]
    chosen = [files.method_of(d, f) for d, f in zip(described, folders, strict=True)]
    mark = files.fingerprint(base)
    for folder, one, method in zip(folders, described, chosen, strict=True):
        if one.get("mtplug", {}).get("base", mark) != mark:
            raise UserError(f"{folder} was made on another base than the one given")
        if method.name != chosen[0].name:
            raise UserError(
                f"{folder} is of method {method.name}, {folders[0]} of {chosen[0].name}: only adapters of "
                "one method have a sum; stack them instead"
            )
    factory: Any = chosen[0].component.factory
    if not hasattr(factory, "sum"):
        raise UserError(f"peft.name={chosen[0].name}: this method has no sums of adapters")
    parts = [
        Part(weight, method.config, files.read(folder))
        for weight, method, folder in zip(weights, chosen, folders, strict=True)
    ]
    settings, tensors, changed = factory.sum(parts, base)
    first = described[0]
    twins: dict[str, str] = {}
    for one in described:
        twins |= one.get("mtplug", {}).get("twins", {})
    if "target_modules" in changed:
        changed["target_modules"] = sorted({*changed["target_modules"], *twins})
    ours = {
        **first.get("mtplug", {}),
        "base": mark,
        "twins": twins,
        "method": {**to_plain(settings), "name": chosen[0].name},
        "sum": [[weight, str(folder)] for weight, folder in zip(weights, folders, strict=True)],
    }
    return tensors, {**first, **changed, "mtplug": ours}
