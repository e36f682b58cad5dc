"""Block sizes and warps of every kernel: a fixed table, because tuning at run time changes bits.

Chosen so that nothing spills on sm_90 (``tests/kernels/test_compile.py`` holds that); some spill a
little on sm_80, which needs its own table. None has been timed on a GPU yet.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Blocks(NamedTuple):
    """BM queries by BN keys a tile, warps a program, stages of the software pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


# By padded head size, for 16-bit inputs.
_HALF = {
    "forward": {64: (64, 64, 4, 3), 128: (64, 64, 8, 2), 256: (64, 32, 8, 2)},
    "backward_queries": {64: (64, 32, 4, 2), 128: (64, 32, 4, 2), 256: (32, 32, 8, 1)},
    "backward_keys": {64: (64, 64, 8, 2), 128: (32, 64, 8, 2), 256: (32, 32, 8, 1)},
    "backward_table": {64: (64, 64, 8, 2), 128: (64, 64, 8, 1), 256: (32, 32, 8, 1)},
}
# Copies of dS into the products' gradients need registers for addresses.
_KEYS_WITH_PRODUCTS = {64: (16, 64, 8, 2), 128: (16, 64, 8, 1), 256: (32, 32, 8, 1)}
# float32 multiplies on the ordinary units, exactly; small tiles keep it in registers.
_FLOAT = {64: (32, 32, 4, 1), 128: (32, 32, 8, 1), 256: (16, 16, 4, 1)}
# The interpreter: small enough that short tests meet far, near and ragged tiles.
_INTERPRETED = {"backward_table": Blocks(16, 16, 4, 1), "backward_keys": Blocks(16, 32, 4, 1)}


def blocks(
    kernel: str, head_size: int, itemsize: int, products: bool = False, capability: int = 90
) -> Blocks:
    """The configuration for a padded head size (a power of two up to 256).

    ``products``: whether a query or key table takes part.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        return _INTERPRETED.get(kernel, Blocks(32, 16, 4, 1))
    size = max(64, head_size)
    if products and kernel == "backward_keys" and itemsize == 2:
        return Blocks(*_KEYS_WITH_PRODUCTS[size])
    return Blocks(*(_FLOAT if itemsize == 4 else _HALF[kernel])[size])


# A tile's rows are queries times heads of a group, so mostly 16. Three pairs of tiles of keys and
# values in flight hide the memory. Turning keys costs registers for the angles.
_DECODE = {64: (64, 4, 3), 128: (64, 4, 3), 256: (32, 4, 2)}
_DECODE_TURNING = {64: (64, 4, 3), 128: (32, 4, 3), 256: (16, 8, 2)}
_DECODE_FLOAT = {64: (32, 4, 2), 128: (32, 4, 2), 256: (16, 4, 2)}


def decode_blocks(head_size: int, rows: int, itemsize: int, turning: bool) -> Blocks:
    """For the decoding kernel; ``rows`` share a key head, ``turning`` with Rotary or XL."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return Blocks(16, 16, 4, 1)
    size = max(64, head_size)
    table = _DECODE_FLOAT if itemsize == 4 else _DECODE_TURNING if turning else _DECODE
    few = rows <= 16 or itemsize == 4 or (turning and size > 64)
    return Blocks(16 if few else 32, *table[size])
