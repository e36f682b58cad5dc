"""Learning-rate schedules: functions of the update, and of validations where they ask for them.

A schedule is called with the number of the update, from 1, and returns what the optimizer's `lr` is
multiplied by. One that goes by validations has `validated(better)`, which is called after each, and
`state()` and `restore(state)`, a dictionary for the checkpoint's JSON; all others need no state to resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import mtplug
from mtplug.errors import UserError
from mtplug.registry import require_range


@dataclass
class WarmupConfig:
    """Linear warm-up, then constant."""

    warmup_updates: int = 4000
    """updates over which the rate rises linearly to its peak"""

    def __post_init__(self) -> None:
        if self.warmup_updates < 0:
            raise ValueError(f"warmup_updates must not be negative, but is {self.warmup_updates}")


class Constant:
    def __init__(self, config: WarmupConfig, max_updates: int):
        self.warmup = config.warmup_updates

    def __call__(self, update: int) -> float:
        if update < self.warmup:
            return update / self.warmup
        return self.after(update)

    def after(self, update: int) -> float:
        """The factor once warm-up is over."""
        return 1.0


@dataclass
class InverseSqrtConfig(WarmupConfig):
    """Falls with the square root of the update after warm-up (Vaswani et al. 2017, section 5.3)."""


class InverseSqrt(Constant):
    def after(self, update: int) -> float:
        return math.sqrt(max(self.warmup, 1) / update)


@dataclass
class FallingConfig(WarmupConfig):
    """Linear warm-up, then a fall to `final`."""

    final: float = 0.0
    """what is left of the peak in the end"""
    updates: int = 0
    """where the end is; 0: training.max_updates"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 0, 1, "final")
        require_range(self, 0, math.inf, "updates")


class Falling(Constant):
    def __init__(self, config: FallingConfig, max_updates: int):
        super().__init__(config, max_updates)
        self.end, self.final = config.updates or max_updates, config.final


@dataclass
class CosineConfig(FallingConfig):
    """Half a cosine from the peak down to `final` at the last update (Loshchilov and Hutter 2017)."""


class Cosine(Falling):
    def after(self, update: int) -> float:
        done = (update - self.warmup) / max(self.end - self.warmup, 1)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@dataclass
class StepConfig(WarmupConfig):
    """Falls by `factor` at an update and at regular intervals after it, whatever validation says."""

    every: int = 10_000
    """updates between two falls"""
    start: int = 0
    """update of the first fall; 0: `every`"""
    factor: float = 0.5
    """what the rate is multiplied by"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 1, math.inf, "every")
        require_range(self, 0, math.inf, "start")
        require_range(self, 0, 1, "factor")


class Step(Constant):
    def __init__(self, config: StepConfig, max_updates: int):
        super().__init__(config, max_updates)
        self.config, self.start = config, config.start or config.every

    def after(self, update: int) -> float:
        falls = (update - self.start) // self.config.every + 1
        return self.config.factor ** max(falls, 0)


@dataclass
class PlateauConfig(WarmupConfig):
    """Falls by `factor` whenever validation has not been better for a while; better is what
    `validation.best_metric` says."""

    factor: float = 0.5
    """what the rate is multiplied by"""
    patience: int = 3
    """validations in a row without a better one, after which it falls"""
    final: float = 0.01
    """share of the peak that it does not fall below"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 0, 1, "factor", "final")
        require_range(self, 1, math.inf, "patience")


class Plateau(Constant):
    def __init__(self, config: PlateauConfig, max_updates: int):
        super().__init__(config, max_updates)
        self.config = config
        self.falls = self.waited = 0

    def after(self, update: int) -> float:
        return max(self.config.factor**self.falls, self.config.final)

    def validated(self, better: bool) -> None:
        self.waited = 0 if better else self.waited + 1
        if self.waited == self.config.patience:
            self.falls, self.waited = self.falls + 1, 0

    def state(self) -> dict[str, int]:
        return {"falls": self.falls, "waited": self.waited}

    def restore(self, state: dict[str, int]) -> None:
        self.falls, self.waited = state["falls"], state["waited"]


def factor_at(schedule: Callable[[int], float], update: int) -> float:
    """What the peak rate is multiplied by at an update.

    Raises:
        UserError: it is no number from 0 on.
    """
    factor = schedule(update)
    if not isinstance(factor, Real) or not 0 <= factor < math.inf:
        raise UserError(
            f"lr_scheduler: the factor of update {update} is {factor!r}; it has to be a number from 0 to 1"
        )
    return float(factor)


def still_rising(schedule: Callable[[int], float], config: Any, max_updates: int) -> list[str]:
    """A line that says so, if the rate still rises at a run's last update, as where warm-up takes all of them.

    Args:
        schedule: any, made for `max_updates`; at most about a thousand of its factors are looked at.
        config: its settings, of which `warmup_updates` is told if there is one.

    Raises:
        UserError: a factor is no number from 0 on, or a checkpoint could not hold what the schedule learns from
            validations.
    """
    missing = [m for m in ("state", "restore") if not hasattr(schedule, m)]
    if hasattr(schedule, "validated") and missing:
        raise UserError(
            f"lr_scheduler: {type(schedule).__name__} has validated(better), but no {' and no '.join(missing)}, without "
            "which a resumed run would not go on alike"
        )
    earlier = {*range(1, max_updates, max(max_updates // 1000, 1)), max_updates - 1} - {0}
    last = factor_at(schedule, max_updates)
    if not earlier or last <= max(factor_at(schedule, update) for update in earlier):
        return []
    warmup = getattr(config, "warmup_updates", None)
    told = "" if warmup is None else f", lr_scheduler.warmup_updates={warmup}"
    return [
        f"lr_scheduler: the learning rate still rises at the last update, where it is {last:.0%} of its peak: "
        f"training.max_updates={max_updates}{told}"
    ]


@mtplug.hookimpl
def register_lr_schedulers(register):
    register("constant", Constant, WarmupConfig)
    register("inverse_sqrt", InverseSqrt, InverseSqrtConfig)
    register("cosine", Cosine, CosineConfig)
    register("step", Step, StepConfig)
    register("plateau", Plateau, PlateauConfig)
