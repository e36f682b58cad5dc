"""Adam and AdamW, from torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

import mtplug
from mtplug.registry import require_fraction, require_range


@dataclass
class AdamConfig:
    """Adam (Kingma and Ba 2015); the defaults are those of Vaswani et al. 2017."""

    lr: float = 5e-4
    """peak learning rate, which the schedule scales"""
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-9
    weight_decay: float = 0.0
    """L2 penalty added to the gradient"""

    def __post_init__(self) -> None:
        require_range(self, 0, math.inf, "lr", "eps", "weight_decay")
        require_fraction(self, "beta1", "beta2")


@dataclass
class AdamWConfig(AdamConfig):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    weight_decay: float = 0.01
    """decay applied to the weights themselves, scaled by the learning rate"""


def _build(cls: type, config: AdamConfig, parameters: Iterable[torch.nn.Parameter]):
    return cls(
        list(parameters),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def adam(config: AdamConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Adam:
    return _build(torch.optim.Adam, config, parameters)


def adamw(config: AdamWConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.AdamW:
    return _build(torch.optim.AdamW, config, parameters)


@mtplug.hookimpl
def register_optimizers(register):
    register("adam", adam, AdamConfig)
    register("adamw", adamw, AdamWConfig)
