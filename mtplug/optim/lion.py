"""Lion: steps by the sign of a momentum."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

import mtplug
from mtplug.registry import require_range


@dataclass
class LionConfig:
    """Lion (Chen et al. 2023, algorithm 2); half of Adam's state. Take a third of Adam's rate or less."""

    lr: float = 1e-4
    """peak learning rate: how far each weight moves"""
    beta1: float = 0.9
    """share of the momentum, beside the gradient, in what the sign is taken of"""
    beta2: float = 0.99
    """share of the momentum that is kept"""
    weight_decay: float = 0.0
    """decay applied to the weights themselves, scaled by the learning rate"""

    def __post_init__(self) -> None:
        require_range(self, 0, math.inf, "lr", "weight_decay")
        require_range(self, 0, 1, "beta1", "beta2")


class Lion(torch.optim.Optimizer):
    def __init__(self, parameters: Iterable[torch.nn.Parameter], **settings: Any):
        super().__init__(parameters, settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            if not with_gradient:
                continue
            gradients = [p.grad for p in with_gradient]
            momenta = []
            for p in with_gradient:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momenta.append(state["momentum"])
            steps = torch._foreach_lerp(momenta, gradients, 1 - group["beta1"])
            torch._foreach_sign_(steps)
            if group["weight_decay"]:
                torch._foreach_mul_(with_gradient, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(with_gradient, steps, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, gradients, 1 - group["beta2"])


def lion(config: LionConfig, parameters: Iterable[torch.nn.Parameter]) -> Lion:
    return Lion(list(parameters), **vars(config))


@mtplug.hookimpl
def register_optimizers(register):
    register("lion", lion, LionConfig)
