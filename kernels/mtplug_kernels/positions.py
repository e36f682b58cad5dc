"""Schemes of relative positions, as data.

Query i stands at absolute position `query_offset + i`, key j at j; their distance is `i - j`. Tables are
indexed by `clip(i - j, -D, D) + D`. H is the number of query heads, d the head size of queries and keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ClippedBias:
    """`+ T[h, clip(i - j)]` (Raffel et al. 2020, section 2.1; any learnt clipped bias).

    Attributes:
        table: (H, 2D+1), in units of scores after scaling.
    """

    table: Tensor


@dataclass
class Linear:
    """`- slope[h] · |i - j|` (ALiBi: Press et al. 2022, section 3).

    Attributes:
        slopes: (H,).
    """

    slopes: Tensor


@dataclass
class QueryTable:
    """`+ scale · q_i · R[clip(i - j)]` (Shaw et al. 2018, equation 5; DeBERTa's content-to-position).

    Attributes:
        table: (H or 1, 2D+1, d).
    """

    table: Tensor


@dataclass
class KeyTable:
    """`+ scale · k_j · R[clip(i - j)]` (DeBERTa's position-to-content: He et al. 2021, equation 4).

    Attributes:
        table: (H or 1, 2D+1, d).
    """

    table: Tensor


@dataclass
class TransformerXL:
    """`scale · ((q_i + u) · k_j + (q_i + v) · W φ(i - j))` (Dai et al. 2019, section 3.3), unclamped.

    `φ(x) = (sin ω_0 x, …, sin ω_{F-1} x, cos ω_0 x, …, cos ω_{F-1} x)` with `ω_f = 10000^(-f / F)`.

    Attributes:
        u, v: (H, d).
        weight: (H or 1, d, 2F).
    """

    u: Tensor
    v: Tensor
    weight: Tensor


@dataclass
class Rotary:
    """`scale · R(i) q_i · R(j) k_j` (Su et al. 2021, section 3.2): coordinates 2f and 2f + 1 turn together
    by `position · base^(-2f / d)`.

    Attributes:
        base: of the wavelengths.
    """

    base: float = 10000.0


Position = ClippedBias | Linear | QueryTable | KeyTable | TransformerXL | Rotary


def alibi_slopes(heads: int) -> Tensor:
    """(H,) float32 slopes of Press et al. 2022: for a power of two the geometric sequence from
    `2^(-8/H)`; otherwise those of the next lower power, then every other one of the next higher."""

    def geometric(count: int) -> list[float]:
        return [2 ** (-8 * (h + 1) / count) for h in range(count)]

    lower = 2 ** math.floor(math.log2(heads))
    return torch.tensor(geometric(lower) + geometric(2 * lower)[0::2][: heads - lower])


def t5_bucket(distance: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """T5's bucket (Raffel et al. 2020) of each distance `i - j`, as int64 of the same shape.

    Half of the buckets of a side are exact distances, the others grow with the logarithm up to
    `max_distance`. Bidirectional: keys after the query use the upper half of the buckets; otherwise they
    count as distance 0. Logarithms are float32, as in the published code, since its rounding decides.
    """
    first = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        first = (distance < 0).long() * buckets
        distance = distance.abs()
    else:
        distance = distance.clamp(min=0)
    exact = buckets // 2
    scaled = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    grown = (exact + (scaled * (buckets - exact)).long()).clamp(max=buckets - 1)
    return first + torch.where(distance < exact, distance, grown)


def t5_table(weight: Tensor, bidirectional: bool, max_distance: int = 128) -> ClippedBias:
    """The clipped bias of T5's bucket weights, differentiable.

    Args:
        weight: (buckets, H), as T5 stores it.

    Returns:
        A table with the least D beyond which buckets no longer change.
    """
    buckets = len(weight)
    reach = torch.arange(-max_distance, max_distance + 1)
    bucket = t5_bucket(reach, buckets, max_distance, bidirectional)
    changes = (bucket[1:] != bucket[:-1]).nonzero().flatten() - max_distance
    # A change between x and x + 1 on the far right must lie inside of D, on the left likewise.
    clip = max(int((changes + 1).max()), -int(changes.min()), 1)
    inside = bucket[max_distance - clip : max_distance + clip + 1].to(weight.device)
    # As a product with constants, so that the gradient's sums have a fixed order.
    onehot = torch.nn.functional.one_hot(inside, buckets).to(weight.dtype)
    return ClippedBias((onehot @ weight).T)
