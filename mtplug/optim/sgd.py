"""Stochastic gradient descent, from torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

import mtplug
from mtplug.registry import require_range


@dataclass
class SGDConfig:
    """Stochastic gradient descent, with momentum (Sutskever et al. 2013)."""

    lr: float = 0.1
    """peak learning rate"""
    momentum: float = 0.9
    """share of the last step that is made again; 0: none"""
    nesterov: bool = False
    """look ahead by the momentum before the gradient counts; needs a momentum"""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient"""

    def __post_init__(self) -> None:
        require_range(self, 0, math.inf, "lr", "momentum", "weight_decay")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")


def sgd(config: SGDConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.SGD:
    return torch.optim.SGD(
        list(parameters),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


@mtplug.hookimpl
def register_optimizers(register):
    register("sgd", sgd, SGDConfig)
