"""Dropout whose mask is cheap to draw on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 1 << 16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero elements with probability `p` and scale the others by 1 / (1 - p).

    torch draws one number for each element, on one thread; in our models that is a tenth of a CPU
    training step. Here one 64-bit draw decides four elements, so `p` is rounded to a multiple of
    2⁻¹⁶, and the scale is that of the rounded value.
    """
    if not training or p == 0:
        return x
    threshold = round(p * _LEVELS)
    if x.device.type != "cpu" or not 0 < threshold < _LEVELS:
        return F.dropout(x, p, training)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64)
    draws.random_(-(1 << 63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    keep = bits >= threshold - _LEVELS // 2
    scale = x.new_full((), _LEVELS / (_LEVELS - threshold))
    return x * torch.where(keep, scale, scale.new_zeros(()))
