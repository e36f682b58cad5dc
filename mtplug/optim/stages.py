"""Schedules that hold the peak for a while: warm-up, stable, decay; and tri-stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mtplug
from mtplug.optim.schedules import Constant, WarmupConfig
from mtplug.registry import choice, require_range


@dataclass
class WSDConfig(WarmupConfig):
    """Warm-up, stable, decay (Hu et al. 2024): the peak until shortly before the end."""

    decay: float = 0.1
    """share of all updates in which the rate falls"""
    shape: str = choice("sqrt", "linear")
    """how it falls: 1 - √done (Hägele et al. 2024), or a straight line"""
    final: float = 0.0
    """what is left of the peak in the end"""
    updates: int = 0
    """where the end is; 0: training.max_updates"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 0, 1, "decay", "final")
        require_range(self, 0, math.inf, "updates")


class WSD(Constant):
    def __init__(self, config: WSDConfig, max_updates: int):
        super().__init__(config, max_updates)
        self.config, self.end = config, config.updates or max_updates

    def after(self, update: int) -> float:
        length = self.config.decay * self.end
        done = min((update - (self.end - length)) / length, 1.0) if length else 0.0
        if done <= 0:
            return 1.0
        fallen = math.sqrt(done) if self.config.shape == "sqrt" else done
        return 1 - (1 - self.config.final) * fallen


@dataclass
class TriStageConfig(WarmupConfig):
    """Warm-up, the peak, and an exponential fall (Park et al. 2019, section 3.2)."""

    hold: float = 0.4
    """share of all updates, after warm-up, that have the peak"""
    final: float = 0.05
    """what is left of the peak in the end"""
    updates: int = 0
    """where the end is; 0: training.max_updates"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 0, 1, "hold")
        require_range(self, 0, math.inf, "updates")
        if not 0 < self.final <= 1:
            raise ValueError(f"final must be above 0 and at most 1, not {self.final}")


class TriStage(Constant):
    def __init__(self, config: TriStageConfig, max_updates: int):
        super().__init__(config, max_updates)
        self.end, self.final = config.updates or max_updates, config.final
        self.fall = self.warmup + config.hold * self.end

    def after(self, update: int) -> float:
        done = (update - self.fall) / max(self.end - self.fall, 1)
        return self.final ** min(max(done, 0.0), 1.0)


@mtplug.hookimpl
def register_lr_schedulers(register):
    register("wsd", WSD, WSDConfig)
    register("tri_stage", TriStage, TriStageConfig)
