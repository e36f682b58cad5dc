"""What schemes of `mtplug_kernels.positions` do to queries, keys and scores, in a few operations of torch.

Shapes: B batch, H heads, I queries, J keys, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from mtplug_kernels import positions, reference, rotate
from mtplug_kernels.api import check_schemes
from mtplug_kernels.positions import (
    ClippedBias,
    KeyTable,
    Linear,
    QueryTable,
    Rotary,
    TransformerXL,
    as_schemes,
)
from torch import Tensor

from mtplug.nn.attention import for_each_query_head


def with_positions(
    q, k, position: Any, i: Tensor, j: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `plain.simplify`, for queries and keys at positions (1, I) and (1, J)."""
    schemes = _checked(q, position)
    if KeyTable in schemes:  # whose tables are of each query's head
        k = for_each_query_head(q, k)
    q, k = _turn(q, k, schemes, i, j)
    bias = reference.position_bias(q, k, i[:, :, None] - j[:, None], schemes, scale)
    return *_lengthen(q, k, schemes, i, j), bias


def score_modifier(q, k, position: Any, offset: int, scale: float) -> tuple[Tensor, Tensor, Any]:
    """(q, k, score_mod) for FlexAttention."""
    schemes = _checked(q, position)
    bias, linear = schemes.get(ClippedBias), schemes.get(Linear)
    by_query, by_key = schemes.get(QueryTable), schemes.get(KeyTable)
    where = places(q, k, offset)
    q, k = _turn(q, k, schemes, *where)
    qr = None if by_query is None else scale * (q @ by_query.table.to(q.dtype).mT)
    kr = None if by_key is None else scale * (k @ by_key.table.to(k.dtype).mT)
    q, k = _lengthen(q, k, schemes, *where)
    if not any((bias, linear, by_query, by_key)):
        return q, k, None

    def at(distance: Tensor, width: int) -> Tensor:
        return distance.clamp(-(width // 2), width // 2) + width // 2

    def modify(score, b, h, i, j):
        distance = i + offset - j
        if bias is not None:
            score = score + bias.table[h, at(distance, bias.table.shape[1])]
        if linear is not None:
            score = score - linear.slopes[h] * distance.abs()
        if qr is not None:
            score = score + qr[b, h, i, at(distance, qr.shape[-1])]
        if kr is not None:
            score = score + kr[b, h, j, at(distance, kr.shape[-1])]
        return score

    return q, k, modify


def _checked(q: Tensor, position: Any) -> dict[type, Any]:
    """Schemes by class. A table of more heads than there are would be read without a word."""
    schemes = as_schemes(position)
    check_schemes(schemes, q.shape[1], q.shape[3], q.device)
    return schemes


def places(q, k, offset: int) -> tuple[Tensor, Tensor]:
    i = torch.arange(offset, offset + q.shape[2], device=q.device)[None]
    return i, torch.arange(k.shape[2], device=q.device)[None]


def _turn(q, k, schemes: dict, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation, which comes first: tables and Transformer-XL go by what is turned."""
    if rotary := schemes.get(Rotary):
        q, k = rotate(q, k, i, j, rotary)
    return q, k


def _lengthen(q, k, schemes: dict, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """Transformer-XL, as further features of q and k, which tables don't look at."""
    if xl := schemes.get(TransformerXL):
        q, k = positions.augment_transformer_xl(q, k, xl, i, j)
    return q, k
