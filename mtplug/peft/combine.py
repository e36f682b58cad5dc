"""Adapters and their base as one model."""

from __future__ import annotations

import torch

from mtplug.architectures.base import Model
from mtplug.peft.base import UnfusedOutput, changes


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
    if UnfusedOutput in type(model).__bases__:
        model.__class__ = type(model).__bases__[1]
    model.requires_grad_(True)
    return model
