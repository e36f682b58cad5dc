"""Schedules that hold the peak for a while: warm-up, stable, decay; and tri-stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mtplug
from mtplug.optim.schedules import Falling, FallingConfig
from mtplug.registry import choice, require_range


@dataclass
class WSDConfig(FallingConfig):
    """Warm-up, stable, decay (Hu et al. 2024): the peak until shortly before the end."""

    decay: float = 0.1
    """share of all updates in which the rate falls"""
    shape: str = choice("sqrt", "linear")
    """how it falls: 1 - √done (Hägele et al. 2024), or a straight line"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 0, 1, "decay")


class WSD(Falling):
    def __init__(self, config: WSDConfig, max_updates: int):
        super().__init__(config, max_updates)
        self.config = config

    def after(self, update: int) -> float:
        length = self.config.decay * self.end
        done = min((update - (self.end - length)) / length, 1.0) if length else 0.0
        if done <= 0:
            return 1.0
        fallen = math.sqrt(done) if self.config.shape == "sqrt" else done
        return 1 - (1 - self.config.final) * fallen


@dataclass
class TriStageConfig(FallingConfig):
    """Warm-up, the peak, and an exponential fall (Park et al. 2019, section 3.2)."""

    hold: float = 0.4
    """share of all updates, after warm-up, that have the peak"""
    final: float = 0.05
    """what is left of the peak in the end"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 0, 1, "hold")
        if not self.final:
            raise ValueError("final must be above 0")


class TriStage(Falling):
    def __init__(self, config: TriStageConfig, max_updates: int):
        super().__init__(config, max_updates)
        self.fall = self.warmup + config.hold * self.end

    def after(self, update: int) -> float:
        done = (update - self.fall) / max(self.end - self.fall, 1)
        return self.final ** min(max(done, 0.0), 1.0)


@mtplug.hookimpl
def register_lr_schedulers(register):
    register("wsd", WSD, WSDConfig)
    register("tri_stage", TriStage, TriStageConfig)
