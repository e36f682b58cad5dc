"""A learning-rate schedule: up to the peak and down to zero, both linearly."""

from dataclasses import dataclass

import mtplug

MTPLUG_API = {"lr_schedulers": 1}


@dataclass
class TriangleConfig:
    """Linear warm-up, then linear decay to zero at the last update."""

    peak: int = 4
    """update with the highest rate"""

    def __post_init__(self):
        if self.peak < 1:
            raise ValueError(f"peak must be at least 1, not {self.peak}")


class Triangle:
    def __init__(self, config: TriangleConfig, max_updates: int):
        self.peak, self.end = config.peak, max_updates

    def __call__(self, update: int) -> float:  # of the optimizer's lr; updates count from 1
        if update <= self.peak:
            return update / self.peak
        return max(0.0, (self.end - update) / max(self.end - self.peak, 1))


@mtplug.hookimpl
def register_lr_schedulers(register):
    register("NAME", Triangle, TriangleConfig)
