"""Philox 4x32-10 (Salmon et al. 2011): random numbers that are a function of a seed and a counter."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def philox(seed: int, counter: Tensor) -> Tensor:
    """The first of the four 32-bit words for each 64-bit counter, as int64 in 0 … 2³² - 1.

    Args:
        seed: 64 bits, used as the key.
        counter: int64, any shape; the upper half of Philox's 128-bit counter is zero.
    """
    return _philox(seed, counter)[0]


def _philox(seed: int, counter: Tensor, high: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    c0, c1 = counter & _MASK, (counter >> 32) & _MASK
    c2 = torch.full_like(c0, high & _MASK)
    c3 = torch.full_like(c0, (high >> 32) & _MASK)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        high_a, low_a = _multiply(0xD2511F53, c0)
        high_b, low_b = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low words of 32 × 32 bits, in int64 that may not overflow."""
    low = a * (b & 0xFFFF)
    middle = a * (b >> 16) + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def keep_mask(shape: tuple[int, int, int, int], p: float, seed: int, device: object) -> Tensor:
    """(B, H, Lq, Lk) bool, False with probability `p`: element n in row-major order is dropped where
    Philox's word for counter n is below `p · 2³²`."""
    count = shape[0] * shape[1] * shape[2] * shape[3]
    words = philox(seed, torch.arange(count, device=device))  # type: ignore[call-overload]
    return (words >= round(p * 2**32)).view(shape)
