"""Philox 4x32-10 (Salmon et al. 2011) in torch: the dropout mask that the kernels draw too.

A counter-based generator needs no state: the number of score (sequence, head, i, j) is a function
of the seed and those four, so forward, backward and the reference agree without storing a mask,
and a packed batch drops what the padded batch drops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b, both below 2^32, in int64 without overflow."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> Tensor:
    """The first 32-bit output word, as int64, for counters (c0, c1, c2, c3) and a 64-bit seed."""
    key0, key1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & _WORD, (key1 + 0xBB67AE85) & _WORD
    return c0


def threshold(dropout_p: float) -> int:
    """A score is dropped when its 32-bit word lies below this."""
    return min(round(dropout_p * 2**32), _WORD)


def keep_mask(
    seed: int, dropout_p: float, batch: int, heads: int, i_L: Tensor, j_L: Tensor, first: int = 0
):
    """(B, H, Lq, Lk) booleans: which probabilities survive, of sequences `first` on. i and j count from 0 in each."""
    at: Any = {"device": i_L.device, "dtype": torch.int64}
    bh = torch.arange(first * heads, (first + batch) * heads, **at).view(batch, heads, 1, 1)
    shape = (batch, heads, len(i_L), len(j_L))
    counters = (j_L.view(1, 1, 1, -1), i_L.view(1, 1, -1, 1), bh, torch.zeros((), **at))
    word = philox(seed, *(c.to(torch.int64).expand(shape) for c in counters))
    return word >= threshold(dropout_p)
