"""Muon, from torch, for the matrices inside of layers, and AdamW for all other parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

import mtplug
from mtplug.errors import UserError
from mtplug.optim.tables import is_table
from mtplug.registry import require_fraction, require_range


@dataclass
class MuonConfig:
    """Muon (Jordan et al. 2024): orthogonalised momentum; AdamW for embeddings, positions, biases and norms."""

    lr: float = 1e-3
    """peak learning rate of both: a matrix's step is scaled to the size of AdamW's (Liu et al.
    2025, section 2.2)"""
    momentum: float = 0.95
    nesterov: bool = True
    """look ahead by the momentum"""
    iterations: int = 5
    """of Newton and Schulz, which make the step nearly orthogonal; computed in bf16"""
    beta1: float = 0.9
    """of AdamW"""
    beta2: float = 0.98
    """of AdamW"""
    eps: float = 1e-9
    """of AdamW"""
    weight_decay: float = 0.0
    """decay applied to the weights themselves, scaled by the learning rate"""

    def __post_init__(self) -> None:
        require_range(self, 0, math.inf, "lr", "momentum", "eps", "weight_decay")
        require_range(self, 1, 99, "iterations")  # what torch takes
        require_fraction(self, "beta1", "beta2")


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers as one: they share its state and its groups.

    Args:
        config: settings.
        parameters: matrices that `mark_tables` did not mark go to Muon.

    Raises:
        UserError: this torch has no Muon.
    """

    def __init__(self, config: MuonConfig, parameters: Iterable[torch.nn.Parameter]):
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"optimizer.name: muon needs torch 2.9, this is {torch.__version__}; "
                "pip install -U torch, or choose adamw"
            )
        everything = list(parameters)
        # One row or column, as of gains, is a vector.
        inner = [p for p in everything if p.ndim == 2 and min(p.shape) > 1 and not is_table(p)]
        taken = {id(p) for p in inner}
        others = [p for p in everything if id(p) not in taken]
        self.parts: list[torch.optim.Optimizer] = []
        if inner:
            self.parts.append(
                torch.optim.Muon(
                    inner,
                    lr=config.lr,
                    weight_decay=config.weight_decay,
                    momentum=config.momentum,
                    nesterov=config.nesterov,
                    ns_steps=config.iterations,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if others:
            self.parts.append(
                torch.optim.AdamW(
                    others,
                    lr=config.lr,
                    betas=(config.beta1, config.beta2),
                    eps=config.eps,
                    weight_decay=config.weight_decay,
                )
            )
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            # Not once and for all: `split_rates` and `load_state_dict` make new groups and a new state.
            adam = "betas" in part.defaults
            part.param_groups = [g for g in self.param_groups if ("betas" in g) == adam]
            part.state = self.state
            part.step()


@mtplug.hookimpl
def register_optimizers(register):
    register("muon", MuonWithAdamW, MuonConfig)
