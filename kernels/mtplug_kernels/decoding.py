"""The operator ``mtplug_kernels::decode``: a few query rows against a long cache, no gradients.

Nothing here is as long as the cache but the cache: no copy of the keys, turned or lengthened, is
made, and of the products with query and key tables only those that can be looked up.

Shape legend: B batch, H query heads, G key heads, Q queries, K keys, D head size, V value size,
P sinusoid features.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
from torch import Tensor

from mtplug_kernels import operators, positions
from mtplug_kernels.triton_kernels import decode as kernels
from mtplug_kernels.tuning import capability, decode_blocks

MAX_QUERIES = 16  # more rows than this fill the forward kernel's tiles
LOG2E = math.log2(math.e)
_NO_TURN = (0, 1.0, False)
# Two for every multiprocessor of an H100. A constant: the number of parts decides the last bits.
_PROGRAMS = 264
_SHORTEST_PART = 4  # tiles of keys: a shorter part is not worth its share of the second pass


def attention(q, k, v, schemes, causal, key_lengths, query_offset, scale) -> tuple[Tensor, Tensor]:
    """Output and logsumexp as of ``operators.attend``; schemes by class, arguments checked."""
    at = {"device": q.device, "dtype": torch.int32}
    offset_B = positions.offsets(query_offset, len(q), at).contiguous()
    turn = _NO_TURN
    if rotary := schemes.get(positions.Rotary):
        dim = positions.rotary_dim(q.shape[-1], rotary)
        turn = dim, float(rotary.base), rotary.interleaved
        where: tuple[Tensor | None, Tensor | None, int] = None, None, query_offset
        if not isinstance(query_offset, int):
            where = _places(offset_B, q), torch.arange(k.shape[2], device=k.device)[None], 0
        if positions.KeyTable in schemes:  # its products need the turned keys themselves
            turn = _NO_TURN
            q, k = operators.rotate(q, k, *where, rotary)
        else:
            q, _ = operators.rotate(q, None, *where, rotary)
    # Written out: Dynamo fails on an assignment inside a comprehension.
    clipped = (positions.ClippedBias, positions.QueryTable, positions.KeyTable)
    tables = [schemes[kind].table if kind in schemes else None for kind in clipped]
    linear = schemes.get(positions.Linear)
    content, tail = q, None
    if xl := schemes.get(positions.TransformerXL):
        long_q = positions.transformer_xl_query(q, xl, _places(offset_B, q))
        content, tail = long_q.split([q.shape[-1], xl.weight.shape[-1]], -1)
    if key_lengths is not None:
        key_lengths = key_lengths.to(**at).contiguous()
    with torch.autocast(q.device.type, enabled=False):
        return decode(
            q, content, tail, k, v, *tables, linear.slopes if linear else None, offset_B,
            key_lengths, causal, float(scale), *turn,
        )  # fmt: skip


def _places(offset_B: Tensor, q: Tensor) -> Tensor:
    """(B, Q): positions of the queries."""
    return offset_B[:, None] + torch.arange(q.shape[2], device=q.device)


@torch.library.custom_op("mtplug_kernels::decode", mutates_args=())
@operators.on_its_device
def decode(
    q: Tensor, content: Tensor, tail: Tensor | None, k: Tensor, v: Tensor, table: Tensor | None,
    query_table: Tensor | None, key_table: Tensor | None, slopes: Tensor | None, offsets: Tensor,
    lengths: Tensor | None, causal: bool, scale: float,
    turn_dim: int, turn_base: float, turn_interleaved: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output (B, H, Q, V) and logsumexp (B, H, Q) float32 in units of log 2, +inf for empty rows.

    q multiplies the query table; content (B, H, Q, D) multiplies k and tail (B, H, Q, P) the
    sinusoids of the keys' positions. Keys turn by their positions unless turn_dim is 0.
    """
    batch, heads, queries, size = q.shape
    groups, keys, value = k.shape[1], k.shape[2], v.shape[3]
    out = q.new_empty(batch, heads, queries, value)
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    lines = batch * heads * queries
    if not lines:
        return out, lse
    rows = heads // groups * queries
    padded = {n: max(16, triton.next_power_of_2(n)) for n in (size, value)}
    extra = tail.shape[3] if tail is not None else 0
    chip = capability(q.device)
    use = decode_blocks(max(padded.values()), rows, q.element_size(), chip, bool(extra or turn_dim))
    tiles = triton.cdiv(keys, use.keys)
    blocks = triton.cdiv(rows, use.queries)
    wanted = triton.cdiv(_PROGRAMS, batch * groups * blocks)
    splits = max(1, min(wanted, tiles // _SHORTEST_PART))

    # lse also stands for arguments that no kernel then reads.
    content, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (content, k, v))
    near, limit = _near_products(q, k, query_table, key_table, offsets, lengths, causal, scale)
    angles = (use.keys, triton.next_power_of_2(tiles), q.device)
    # What a CUDA graph allocates while it is recorded is the graph's, and not to be kept.
    capturing = q.is_cuda and torch.cuda.is_current_stream_capturing()
    turned = _turns.__wrapped__ if capturing else _turns
    turns = turned(turn_dim, turn_base, turn_interleaved, size, *angles) if turn_dim else lse
    waves = turned(extra, 10000.0, False, extra, *angles) if extra else lse
    parts = lse.new_empty(lines, splits, value)
    tops = lse.new_empty(lines, splits)
    optional = (near, key_table, slopes)
    near, key_table_rows, slopes = (lse if x is None else x.contiguous() for x in optional)
    kernels.decode[(batch * groups, splits, blocks)](
        content, k, v, lse if tail is None else tail.contiguous(), parts, tops,
        lse if table is None else table.float().contiguous(), near, key_table_rows, slopes,
        turns, waves, offsets, offsets if lengths is None else lengths,
        *(n for x in (content, k, v) for n in x.stride()[:3]), _head_stride(key_table),
        groups, heads // groups, queries, keys,
        0 if table is None else table.shape[1] // 2,
        0 if key_table is None else key_table.shape[1] // 2, limit, scale * LOG2E,
        HAS_TABLE=table is not None, HAS_NEAR=optional[0] is not None,
        HAS_KTABLE=key_table is not None, HAS_LINEAR=optional[2] is not None,
        HAS_LENGTHS=lengths is not None, CAUSAL=causal,
        PAIR=0 if not turn_dim else 1 if turn_interleaved else turn_dim // 2, TAIL_SIZE=extra,
        SIZE=size, VSIZE=value, BD=padded[size], BV=padded[value],
        BT=max(16, triton.next_power_of_2(extra)), BM=use.queries, BN=use.keys,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=use.warps, num_stages=use.stages,
    )  # fmt: skip
    kernels.combine[(lines,)](
        parts, tops, out, lse, splits, SPLITS=triton.next_power_of_2(splits), VSIZE=value,
        BV=padded[value], CHUNK=16, num_warps=4,
    )  # fmt: skip
    return out, lse


@decode.register_fake
def _(q, content, tail, k, v, *rest):
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


def _near_products(q, k, query_table, key_table, offsets, lengths, causal, scale):
    """(B, H, Q, 2 * limit + 1) of what the tables add to logits within the limit, and the limit.

    Causally the half that lies ahead of the query is never looked up, and is left unwritten.
    """
    if query_table is None and key_table is None:
        return None, 0
    limits = [0 if x is None else x.shape[1] // 2 for x in (query_table, key_table)]
    limit = max(limits)
    batch, heads, queries, size = q.shape
    near = q.new_empty(batch, heads, queries, 2 * limit + 1, dtype=torch.float32)
    first = limit if causal else 0
    q = q if q.stride(-1) == 1 else q.contiguous()
    tables = [q if x is None else x.contiguous() for x in (query_table, key_table)]
    block = 64
    kernels.near_products[(near.shape[:3].numel(), triton.cdiv(2 * limit + 1 - first, block))](
        q, k, *tables, near, offsets, offsets if lengths is None else lengths,
        *q.stride()[:3], *k.stride()[:3], _head_stride(query_table), _head_stride(key_table),
        heads, heads // k.shape[1], queries, k.shape[2], *limits, limit, first, scale,
        HAS_QTABLE=query_table is not None, HAS_KTABLE=key_table is not None,
        HAS_LENGTHS=lengths is not None, SIZE=size,
        BD=max(16, triton.next_power_of_2(size)), BC=block, num_warps=4,
    )  # fmt: skip
    return near, limit


def _head_stride(table: Tensor | None) -> int:
    """Of a contiguous (H or 1, C, D) table; one table for all heads is read again and again."""
    return 0 if table is None or table.shape[0] == 1 else table.shape[1] * table.shape[2]


@functools.lru_cache(maxsize=16)
def _turns(dim, base, interleaved, size, block, tiles, device) -> Tensor:
    """(block + tiles, 2, size): cosines and sines at positions 0..block-1, then at tiles' starts.

    Kept between calls, because a step of decoding is short: 0.5 MB for 64k keys of 64 features.
    """
    at = {"device": device, "dtype": torch.float64}
    frequency = base ** (-torch.arange(0, dim, 2, **at) / dim)
    frequency = frequency.repeat_interleave(2) if interleaved else frequency.repeat(2)
    frequency = torch.nn.functional.pad(frequency, (0, size - dim))
    position = torch.cat([torch.arange(block, **at), torch.arange(tiles, **at) * block])
    angle = position[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()], 1).float()
