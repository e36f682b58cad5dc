"""Block sizes and warps of every kernel: a fixed table, because tuning at run time changes bits.

For heads of 64 and 128 on 9.0 the fastest on an H100 and an H200 with Triton 3.6 (docs/kernels.md;
``tests/kernels/test_compile.py`` says what spills); a table for keys with 128 features, other heads,
dropout, several schemes at once and all of 8.0 by compiled resources alone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection
from typing import NamedTuple

import torch


class Blocks(NamedTuple):
    """BM queries by BN keys a tile, warps a program, stages of the software pipeline, and the most
    registers of a thread where fewer than the compiler would take let one more program fit."""

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None

    @property
    def tile(self) -> dict[str, int]:
        return {"BM": self.queries, "BN": self.keys}

    @property
    def options(self) -> dict[str, int | None]:
        """What a launch says to the compiler."""
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}


_PRODUCTS_80: dict[str, dict[int, tuple]] = {
    "forward": {64: (32, 32, 4, 3), 128: (32, 32, 4, 2)},
    "backward_queries": {64: (32, 32, 4, 2), 128: (16, 32, 4, 2)},
    "backward_keys": {64: (16, 32, 4, 2), 128: (16, 16, 4, 1)},
}
# By capability, what takes part, kernel and padded head size, for 16-bit inputs; "" is what
# holds where nothing else is said. 90 serves newer chips too, 80 also the consumer chips of its
# generation, with 99 KB of shared memory.
_HALF: dict[int, dict[str, dict[str, dict[int, tuple]]]] = {
    90: {
        "": {
            "forward": {64: (64, 128, 4, 2, 168), 128: (64, 64, 4, 3), 256: (64, 32, 8, 2)},
            "backward_queries": {
                64: (64, 64, 4, 2, 128), 128: (64, 64, 4, 2), 256: (32, 32, 8, 1),
            },
            "backward_keys": {64: (128, 64, 4, 2), 128: (64, 64, 4, 2), 256: (32, 32, 8, 1)},
            "backward_products": {64: (16, 32, 4, 2), 128: (16, 32, 4, 2), 256: (32, 32, 8, 1)},
            "backward_table": {64: (64, 64, 4, 2, 168), 128: (64, 64, 8, 2), 256: (16, 16, 4, 1)},
        },
        "linear": {"backward_queries": {64: (64, 64, 4, 3, 168)}},
        "dropout": {
            "forward": {64: (64, 64, 4, 2), 128: (64, 32, 4, 2)},
            "backward_queries": {64: (64, 32, 4, 3), 128: (64, 32, 4, 2)},
            "backward_keys": {64: (32, 64, 4, 2), 128: (16, 64, 4, 2)},
            "backward_table": {64: (64, 64, 4, 2)},
        },
        "tail": {
            "forward": {64: (64, 64, 4, 2), 128: (64, 64, 4, 2)},
            "backward_queries": {64: (64, 64, 4, 2, 168), 128: (128, 64, 8, 3)},
            "backward_keys": {64: (64, 64, 4, 2), 128: (32, 64, 4, 2)},
            "backward_table": {64: (64, 64, 4, 2)},
        },
        "query": {"backward_keys": {128: (32, 64, 4, 2)}},
        "key": {
            "forward": {64: (64, 128, 4, 2), 128: (64, 64, 4, 2)},
            "backward_queries": {64: (64, 64, 4, 3, 168), 128: (64, 32, 4, 2)},
            "backward_keys": {128: (16, 64, 4, 2)},
            "backward_table": {64: (64, 64, 4, 2)},
        },
    },
    80: {
        "": {
            "forward": {64: (64, 32, 4, 3), 128: (64, 32, 4, 2), 256: (64, 32, 8, 2)},
            "backward_queries": {64: (64, 32, 4, 2), 128: (32, 32, 4, 2), 256: (32, 32, 8, 1)},
            "backward_keys": {64: (32, 32, 4, 3), 128: (16, 32, 4, 2), 256: (32, 32, 8, 1)},
            "backward_products": {64: (32, 32, 4, 2), 128: (16, 32, 4, 2), 256: (32, 32, 8, 1)},
            "backward_table": {64: (32, 32, 4, 2), 128: (16, 16, 4, 1), 256: (16, 16, 4, 1)},
        },
        "tail": {
            "forward": {128: (32, 32, 4, 2)},
            "backward_queries": {128: (16, 32, 4, 2)},
        },
        "query": _PRODUCTS_80,
        "key": _PRODUCTS_80,
    },
}  # fmt: skip
# Where several take part, the first of these decides.
_DEMANDING = ("dropout", "key", "query", "tail", "linear")
# float32 multiplies exactly, on the ordinary units, which keep whole rows of both operands in
# registers: longer heads need twice the threads.
_FLOAT = {64: Blocks(16, 16, 4, 1), 128: Blocks(16, 16, 8, 1), 256: Blocks(16, 16, 8, 1)}
# The interpreter: small enough that short tests meet far, near and ragged tiles.
_INTERPRETED = {"backward_table": Blocks(16, 32, 4, 1), "backward_keys": Blocks(16, 32, 4, 1)}

# Decoding. A tile's rows are queries times heads of a group, so mostly 16. Three pairs of tiles of
# keys and values in flight hide the memory. Turning keys costs registers for the angles.
_DECODE = {64: (64, 4, 3), 128: (64, 4, 3), 256: (32, 4, 2)}
_DECODE_TURNING = {
    90: {64: (64, 4, 3), 128: (32, 4, 3), 256: (16, 8, 2)},
    80: {64: (64, 4, 3), 128: (32, 4, 3), 256: (16, 8, 3)},
}


# Bytes of shared memory that a program may have on 9.0 and 10.0. Newer consumer chips have 99 KB.
_SHARED_90 = 227 * 1024


@functools.cache
def capability(device: torch.device) -> int:
    """80 or 90: whose table of blocks the device takes."""
    if device.type != "cuda":
        return 90
    there = torch.cuda.get_device_properties(device)
    shared = getattr(there, "shared_memory_per_block_optin", 0)
    return 90 if there.major >= 9 and shared >= _SHARED_90 else 80


def size_of_tiles(head_size: int, tail: int) -> int:
    """The padded head size whose blocks are taken; tail: padded sinusoid features, 0 without any.

    A tail of more than 64 is one more operand in shared memory than the blocks of 64 and 128 leave room for.
    """
    return 256 if tail and head_size + tail > 192 else head_size


def blocks(
    kernel: str, head_size: int, itemsize: int, capability: int, parts: Collection[str] = ()
) -> Blocks:
    """The configuration for a padded head size (a power of two up to 256).

    ``parts``: what takes part, of "linear", "query", "key", "tail" (Transformer-XL) and
    "dropout".
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        return _INTERPRETED.get(kernel, Blocks(32, 16, 4, 1))
    size = max(64, head_size)
    if itemsize == 4:
        return _FLOAT[size]
    tables = _HALF[capability]
    for part in (*_DEMANDING, ""):
        if (part in parts or not part) and size in tables.get(part, {}).get(kernel, {}):
            break
    return Blocks(*tables[part][kernel][size])


def products_together(head_size: int, parts: Collection[str]) -> bool:
    """Whether backward_keys has both its products of scores in flight at once.

    It is faster where the positions leave registers for that: with 64 features by 3 to 7 % on an H200,
    slower by 3 % with 128 and by 8 and 19 % for a key table and a linear bias.
    """
    return head_size <= 64 and not {"key", "linear", "dropout"} & set(parts)


def decode_blocks(
    head_size: int, rows: int, itemsize: int, capability: int, turning: bool
) -> Blocks:
    """For the decoding kernel; ``rows`` share a key head, ``turning`` with Rotary or XL."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return Blocks(16, 16, 4, 1)
    if itemsize == 4:
        return Blocks(16, 16, 8 if turning else 4, 2)
    size = max(64, head_size)
    few = rows <= 16 or (turning and size > 64)
    return Blocks(16 if few else 32, *(_DECODE_TURNING[capability] if turning else _DECODE)[size])
