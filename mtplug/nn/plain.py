"""Attention in a few operations of torch, position schemes as a bias: for CPUs and for wherever nothing is faster.

Shapes: B batch, H heads, G heads of keys and values, I queries, J keys, D head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def simplify(q, k, position, offset: int, scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Schemes as plain attention: turned or lengthened q and k, and a bias (B or 1, H, I, J)."""
    if not position:
        return q, k, None
    from mtplug.nn.schemes import places, with_positions  # needs mtplug_kernels, as schemes do

    return with_positions(q, k, position, *places(q, k, offset), scale)


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
    scores = _product(q * scale, k.mT)
    if bias is not None:
        scores = scores + bias
    work = torch.promote_types(q.dtype, torch.float32)
    return _product(scores.softmax(-1, dtype=work).to(v.dtype), v)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """(B, H, I, L) times (B, G, L, M), each of G used for H / G in a row without being repeated."""
    if x.shape[1] == y.shape[1]:
        return x @ y
    rows = x.unflatten(1, (y.shape[1], -1)).flatten(2, 3)
    return (rows @ y).unflatten(2, (x.shape[1] // y.shape[1], x.shape[2])).flatten(1, 2)
