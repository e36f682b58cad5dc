"""Schedule-free AdamW, from the authors' library `schedulefree`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mtplug
from mtplug.errors import UserError
from mtplug.registry import require_fraction, require_range


@dataclass
class ScheduleFreeConfig:
    """Schedule-free AdamW (Defazio et al. 2024): averages weights instead of lowering the rate.

    Goes with lr_scheduler.name=constant, whose warm-up it still wants.
    """

    lr: float = 2.5e-3
    """learning rate; larger than AdamW's"""
    beta1: float = 0.9
    """how near to the average the gradient is taken; below 1"""
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.0
    """decay at the point where the gradient is taken"""

    def __post_init__(self) -> None:
        require_range(self, 0, math.inf, "lr", "eps", "weight_decay")
        require_fraction(self, "beta1", "beta2")
        if not self.beta1:
            raise ValueError("beta1 must be above 0, not 0")


def schedule_free(config: ScheduleFreeConfig, parameters: Iterable[torch.nn.Parameter]):
    """Raises `UserError` if the library is not there."""
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError:
        raise UserError(
            'optimizer.name: schedule_free needs a library: pip install "mtplug[schedulefree]"'
        ) from None

    class ScheduleFree(AdamWScheduleFree):  # type: ignore[misc]
        """Stays where gradients are taken (y in the paper) and tells the average (x) on request.

        The library would have the weights themselves switched there and back, which rounds, so
        that validating would change the run.
        """

        def step(self, closure: Any = None) -> None:
            # At rate zero the library would still move towards the average.
            if any(group["lr"] for group in self.param_groups):
                super().step(closure)

        @torch.no_grad()
        def averaged_weights(self) -> list[Tensor]:
            found = []
            for group in self.param_groups:
                for p in group["params"]:
                    z = self.state[p].get("z") if p in self.state else None
                    beta1 = group["betas"][0]
                    found.append(p.clone() if z is None else p.lerp(z, 1 - 1 / beta1))
            return found

    made = ScheduleFree(
        list(parameters),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    made.train()
    return made


@mtplug.hookimpl
def register_optimizers(register):
    register("schedule_free", schedule_free, ScheduleFreeConfig)
