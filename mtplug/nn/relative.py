"""Relative positions: encodings that state a scheme of `mtplug_kernels.positions`.

Shapes: H heads, D head size, C model size, R = 2·max_distance + 1 clipped distances, P sinusoids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from mtplug_kernels import positions
from torch import nn

import mtplug
from mtplug.errors import UserError
from mtplug.nn.positions import PositionEncoding, Stack
from mtplug.registry import NoConfig, require_range


@dataclass
class T5BiasConfig:
    """A learnt bias for each head and bucket of distances (Raffel et al. 2020, section 2.1)."""

    buckets: int = 32
    """numbers a head learns; half of them, in the encoder, for each direction"""
    max_distance: int = 128
    """distances from here on share a bucket"""

    def __post_init__(self) -> None:
        if self.buckets < 4 or self.buckets % 2:
            raise ValueError(f"buckets must be even and at least 4, not {self.buckets}")
        if self.max_distance <= self.buckets // 2:
            raise ValueError(f"max_distance must exceed half of {self.buckets} buckets")


class T5Bias(PositionEncoding):
    """One table for all layers of a stack, as in T5; scores keep their factor 1/sqrt(D)."""

    def __init__(self, config: T5BiasConfig, stack: Stack):
        super().__init__()
        self.max_distance, self.bidirectional = config.max_distance, not stack.causal
        self.weight = nn.Parameter(torch.randn(config.buckets, stack.heads) * stack.dim**-0.5)

    def schemes(self, layer: int) -> tuple[Any, ...]:
        table = positions.t5_table(self.weight, self.bidirectional, self.max_distance)
        return (positions.ClippedBias(table),)


class Alibi(PositionEncoding):
    """Minus a fixed slope for each head times the distance (Press et al. 2022)."""

    def __init__(self, config: NoConfig, stack: Stack):
        super().__init__()
        self.slopes: torch.Tensor
        slopes = positions.alibi_slopes(stack.heads)
        self.register_buffer("slopes", slopes, persistent=False)

    def schemes(self, layer: int) -> tuple[Any, ...]:
        return (positions.Linear(self.slopes),)


@dataclass
class ShawConfig:
    """Learnt vectors for clipped distances, added to the keys (Shaw et al. 2018)."""

    max_distance: int = 16
    """k of the paper: larger distances count as this one"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "max_distance")


class Shaw(PositionEncoding):
    """A table for each layer, shared by its heads, as in the paper's experiments.

    Only the keys' vectors: the paper finds the values' to add nothing (its table 3).
    """

    def __init__(self, config: ShawConfig, stack: Stack):
        super().__init__()
        shape = (stack.layers, 1, 2 * config.max_distance + 1, stack.head_size)
        self.table = nn.Parameter(torch.randn(shape) * stack.head_size**-0.5)

    def schemes(self, layer: int) -> tuple[Any, ...]:
        return (positions.QueryTable(self.table[layer]),)


@dataclass
class TransformerXLConfig:
    """Sinusoids of distances behind a learnt map, and two learnt biases (Dai et al. 2019)."""

    features: int = 64
    """sines and cosines, together; the paper has as many as the model size"""

    def __post_init__(self) -> None:
        if self.features < 2 or self.features % 2:
            raise ValueError(f"features must be even and at least 2, not {self.features}")


class TransformerXL(PositionEncoding):
    """u and v for the whole stack, W for each layer, as in section 3.3 of the paper."""

    def __init__(self, config: TransformerXLConfig, stack: Stack):
        super().__init__()
        self.u = nn.Parameter(torch.zeros(stack.heads, stack.head_size))
        self.v = nn.Parameter(torch.zeros(stack.heads, stack.head_size))
        shape = (stack.layers, stack.heads, stack.head_size, config.features)
        self.weight = nn.Parameter(torch.randn(shape) * config.features**-0.5)

    def schemes(self, layer: int) -> tuple[Any, ...]:
        return (positions.TransformerXL(self.u, self.v, self.weight[layer]),)


@dataclass
class RopeConfig:
    """Queries and keys turn by an angle that grows with their position (Su et al. 2021)."""

    base: float = 10000.0
    """the longest wavelength is about 2 pi times this"""

    def __post_init__(self) -> None:
        if not self.base > 0:
            raise ValueError(f"base must be positive, not {self.base}")


class Rope(PositionEncoding):
    """Pairs of features turn, feature f with f + D/2."""

    def __init__(self, config: RopeConfig, stack: Stack):
        super().__init__()
        if stack.head_size % 2:
            raise UserError(
                f"architecture.position: rope needs an even head size, and dim / heads is {stack.head_size}"
            )
        self.base = config.base

    def schemes(self, layer: int) -> tuple[Any, ...]:
        return (positions.Rotary(self.base),)


@dataclass
class DebertaConfig:
    """Content-to-position and position-to-content terms (He et al. 2021, section 3.1)."""

    max_distance: int = 64
    """k of the paper: larger distances count as this one"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "max_distance")


class Deberta(PositionEncoding):
    """One table of distances for the stack, mapped to queries and keys by each layer.

    Scores are divided by sqrt(3 D), for they have three terms.
    """

    def __init__(self, config: DebertaConfig, stack: Stack):
        super().__init__()
        self.stack = stack
        self.score_scale = (3 * stack.head_size) ** -0.5
        table = torch.randn(2 * config.max_distance + 1, stack.dim) * stack.dim**-0.5
        self.table = nn.Parameter(table)
        size = stack.heads * stack.head_size
        self.q = nn.ModuleList(nn.Linear(stack.dim, size) for _ in range(stack.layers))
        self.k = nn.ModuleList(nn.Linear(stack.dim, size) for _ in range(stack.layers))
        for linear in (*self.q, *self.k):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def schemes(self, layer: int) -> tuple[Any, ...]:
        keys, queries = (
            linear(self.table).unflatten(-1, (self.stack.heads, -1)).transpose(0, 1)
            for linear in (self.k[layer], self.q[layer])
        )
        # The paper looks up position-to-content at j - i, our schemes at i - j.
        return positions.QueryTable(keys), positions.KeyTable(queries.flip(1))


@mtplug.hookimpl
def register_position_encodings(register):
    register("t5_bias", T5Bias, T5BiasConfig)
    register("alibi", Alibi)
    register("shaw", Shaw, ShawConfig)
    register("transformer_xl", TransformerXL, TransformerXLConfig)
    register("rope", Rope, RopeConfig)
    register("deberta", Deberta, DebertaConfig)
