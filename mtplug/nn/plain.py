"""Attention in a few operations of torch, position schemes as a bias: for CPUs and for wherever nothing is faster.

Shapes: B batch, H heads, I queries, J keys, D head size.
"""

from __future__ import annotations

import math

import torch
from mtplug_kernels import positions, reference, rotate
from mtplug_kernels.positions import Rotary, TransformerXL, as_schemes
from torch import Tensor


def simplify(q, k, position, offset: int, scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Schemes as plain attention: turned or lengthened q and k, and a bias (B or 1, H, I, J)."""
    if not position:
        return q, k, None
    return with_positions(q, k, as_schemes(position), *places(q, k, offset), scale)


def with_positions(
    q, k, schemes: dict, i: Tensor, j: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `simplify`, for queries and keys at positions (1, I) and (1, J)."""
    q, k = turn(q, k, schemes, i, j)
    bias = reference.position_bias(q, k, i[:, :, None] - j[:, None], schemes, scale)
    return *lengthen(q, k, schemes, i, j), bias


def places(q, k, offset: int) -> tuple[Tensor, Tensor]:
    i = torch.arange(offset, offset + q.shape[2], device=q.device)[None]
    return i, torch.arange(k.shape[2], device=q.device)[None]


def turn(q, k, schemes: dict, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation, which comes first: tables and Transformer-XL go by what is turned."""
    if rotary := schemes.get(Rotary):
        q, k = rotate(q, k, i, j, rotary)
    return q, k


def lengthen(q, k, schemes: dict, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """Transformer-XL, as further features of q and k, which tables don't look at."""
    if xl := schemes.get(TransformerXL):
        q, k = positions.augment_transformer_xl(q, k, xl, i, j)
    return q, k


def masked(bias: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """A bias that is -inf where the mask is False."""
    if mask is None:
        return bias
    if bias is None:
        bias = torch.zeros(mask.shape, device=mask.device)
    return bias.masked_fill(~mask, -math.inf)


def weigh(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Attention as two products, with a softmax in fp32 or better between them. For few queries of bf16 on
    CPUs: torch's own attention takes twice as long for them."""
    scores = (q * scale) @ k.mT
    if bias is not None:
        scores = scores + bias
    work = torch.promote_types(q.dtype, torch.float32)
    return scores.softmax(-1, dtype=work).to(v.dtype) @ v
