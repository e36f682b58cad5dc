"""Attention in a few operations of torch, position schemes as a bias: for CPUs and for wherever nothing is faster.

Shapes: B batch, H heads, I queries, J keys, D head size.
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
    scores = (q * scale) @ k.mT
    if bias is not None:
        scores = scores + bias
    work = torch.promote_types(q.dtype, torch.float32)
    return scores.softmax(-1, dtype=work).to(v.dtype) @ v
