"""Schedules that fall to a given end: linear, polynomial."""

from __future__ import annotations

from dataclasses import dataclass

import mtplug
from mtplug.optim.schedules import Falling, FallingConfig


@dataclass
class LinearConfig(FallingConfig):
    """A straight line from the peak down to `final` at the last update."""


class Linear(Falling):
    power = 1.0

    def after(self, update: int) -> float:
        left = (self.end - update) / max(self.end - self.warmup, 1)
        return self.final + (1 - self.final) * min(max(left, 0.0), 1.0) ** self.power


@dataclass
class PolynomialConfig(LinearConfig):
    """As linear, with the share of updates that is left raised to a power."""

    power: float = 2.0
    """1 is linear; above, the rate falls fast at first"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.power <= 0:
            raise ValueError(f"power must be above 0, not {self.power}")


class Polynomial(Linear):
    def __init__(self, config: PolynomialConfig, max_updates: int):
        super().__init__(config, max_updates)
        self.power = config.power


@mtplug.hookimpl
def register_lr_schedulers(register):
    register("linear", Linear, LinearConfig)
    register("polynomial", Polynomial, PolynomialConfig)
