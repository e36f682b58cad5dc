"""Adafactor, from torch: a matrix's second moments are kept as a row and a column."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

import mtplug
from mtplug.registry import require_range


@dataclass
class AdafactorConfig:
    """Adafactor (Shazeer and Stern 2018); state of O(rows + columns) instead of Adam's two copies."""

    lr: float = 1e-2
    """peak of the relative step size, which is scaled by each parameter's own root mean square and
    bounded by 1/√update"""
    beta2_decay: float = -0.8
    """second moments of update t are averaged with 1 - t^beta2_decay (section 7.2)"""
    least_scale: float = 1e-3
    """a parameter counts as at least so large in root mean square"""
    clip: float = 1.0
    """greatest root mean square of a parameter's step before it is scaled (section 6)"""
    weight_decay: float = 0.0
    """decay applied to the weights themselves, scaled by the learning rate"""

    def __post_init__(self) -> None:
        require_range(self, 0, math.inf, "lr", "least_scale", "weight_decay")
        require_range(self, -math.inf, 0, "beta2_decay")
        require_range(self, 1, math.inf, "clip")


class Adafactor(torch.optim.Adafactor):
    """Torch's; a matrix's rows and columns are whole only where it is."""

    needs_whole_weights = True


def adafactor(config: AdafactorConfig, parameters: Iterable[torch.nn.Parameter]) -> Adafactor:
    return Adafactor(
        list(parameters),
        lr=config.lr,
        beta2_decay=config.beta2_decay,
        eps=(None, config.least_scale),
        d=config.clip,
        weight_decay=config.weight_decay,
    )


@mtplug.hookimpl
def register_optimizers(register):
    register("adafactor", adafactor, AdafactorConfig)
