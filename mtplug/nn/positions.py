"""Position encodings, the kind `position_encodings`, and those added to embeddings.

`mtplug.nn.relative` has those that change attention scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mtplug
from mtplug.errors import UserError
from mtplug.registry import NoConfig


@dataclass(frozen=True)
class Stack:
    """The encoder or decoder that positions are for."""

    dim: int
    """model size C"""
    heads: int
    layers: int
    causal: bool
    """whether only earlier positions are seen"""
    head_dim: int = 0
    """size D of a head; 0: dim / heads"""

    @property
    def head_size(self) -> int:
        return self.head_dim or self.dim // self.heads


class PositionEncoding(nn.Module):
    """What positions do in one stack: something added to embeddings, or to attention scores.

    Attributes:
        score_scale: factor of the dot products in self-attention; None: 1/sqrt(head size).
        limit: positions that there are.
    """

    score_scale: float | None = None
    limit: float = math.inf

    def embed(self, start: int, length: int) -> Tensor | None:
        """(length, C) for the absolute positions `start` … `start + length - 1`; None: nothing."""
        return None

    def schemes(self, layer: int) -> tuple[Any, ...]:
        """What self-attention of a layer, counted from 0, does with distances.

        Returns:
            Objects of `mtplug_kernels.positions`, at most one of each class.
        """
        return ()


def schemes_of(position: PositionEncoding, layer: int) -> tuple[Any, ...]:
    """What `position.schemes` gives.

    Raises:
        UserError: that is no tuple, and no list, or has a table of no such shape.
    """
    given = position.schemes(layer)
    if not isinstance(given, (tuple, list)):
        raise UserError(
            f"position encoding {type(position).__name__}: schemes gives a {type(given).__name__}; it has to be a "
            "tuple, also of one scheme"
        )
    for scheme in given:
        if (table := getattr(scheme, "table", None)) is not None:
            from mtplug_kernels.positions import ClippedBias

            shape, due = (
                ("(H, 2D+1)", 2) if isinstance(scheme, ClippedBias) else ("(H or 1, 2D+1, d)", 3)
            )
            if table.ndim != due or table.shape[1] % 2 == 0:
                raise UserError(
                    f"position encoding {type(position).__name__}: {type(scheme).__name__}.table has to be {shape}, "
                    f"not {tuple(table.shape)}"
                )
    return tuple(given)


def positions_of(model: nn.Module) -> float:
    """How many positions a model has on its side of fewest, `</s>` counted; infinite where any length will do."""
    limits = (module.limit for module in model.modules() if isinstance(module, PositionEncoding))
    return min(limits, default=math.inf)


class Sinusoidal(PositionEncoding):
    """Fixed sines and cosines (Vaswani et al. 2017, section 3.5); any length."""

    def __init__(self, config: NoConfig, stack: Stack):
        super().__init__()
        self.dim = stack.dim
        self.table: Tensor
        self.register_buffer("table", torch.zeros(0, stack.dim), persistent=False)

    def embed(self, start: int, length: int) -> Tensor:
        if len(self.table) < start + length:
            # A table made in a search's inference mode could not be written to by training.
            with torch.inference_mode(False):
                self.table = self._table(max(512, 2 * (start + length)))
        return self.table[start : start + length]

    def _table(self, size: int) -> Tensor:
        positions = torch.arange(size, device=self.table.device, dtype=torch.float32)
        half = torch.arange(0, self.dim, 2, device=self.table.device, dtype=torch.float32)
        angles = positions[:, None] * torch.exp(half * (-math.log(10000.0) / self.dim))
        table = torch.zeros(size, self.dim, device=self.table.device)
        table[:, 0::2] = angles.sin()
        table[:, 1::2] = angles.cos()[:, : self.dim // 2]
        return table


@dataclass
class LearnedConfig:
    """One learnt vector for each position."""

    max_positions: int = 1024
    """positions there are; longer sentences are an error"""


class Learned(PositionEncoding):
    """A table of vectors (Gehring et al. 2017)."""

    def __init__(self, config: LearnedConfig, stack: Stack):
        super().__init__()
        weight = torch.randn(config.max_positions, stack.dim) * stack.dim**-0.5
        self.weight = nn.Parameter(weight)
        self.limit = config.max_positions

    def embed(self, start: int, length: int) -> Tensor:
        if start + length > len(self.weight):
            raise UserError(
                f"a sentence has {start + length} tokens, position.max_positions is "
                f"{len(self.weight)}; raise it or lower data.max_length"
            )
        return self.weight[start : start + length]


@mtplug.hookimpl
def register_position_encodings(register):
    register("sinusoidal", Sinusoidal)
    register("learned", Learned, LearnedConfig)
