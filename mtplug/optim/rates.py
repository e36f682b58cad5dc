"""Parameters that learn faster or slower than the others, as LoRA+ (Hayou et al. 2024) wants it."""

from __future__ import annotations

import torch
from torch import Tensor


def lr_factor(parameter: Tensor) -> float:
    """What a parameter's learning rate is multiplied by: its `lr_factor`, which a method may set; else 1."""
    return getattr(parameter, "lr_factor", 1.0)


def split_rates(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters with a factor groups of their own, in place; the order of all is kept where they
    are sorted by it."""
    groups = []
    for group in optimizer.param_groups:
        parts: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            parts.setdefault(lr_factor(parameter), []).append(parameter)
        if list(parts) == [1.0]:
            groups.append(group)
            continue
        for factor, parameters in parts.items():
            groups.append({**group, "params": parameters, "lr": group["lr"] * factor})
    optimizer.param_groups[:] = groups
