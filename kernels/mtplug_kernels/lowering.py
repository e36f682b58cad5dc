"""From schemes to what the operators take: longer q and k, row and column products, spans.

The matrix products of tables with q or k are ordinary torch operations, so their gradients are
autograd's; only what needs the scores is in the kernels.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import get_args

import torch
from torch import Tensor

from mtplug_kernels import decoding, operators
from mtplug_kernels.positions import (
    ClippedBias,
    KeyTable,
    Linear,
    Position,
    QueryTable,
    Rotary,
    TransformerXL,
    as_schemes,
    ends_of,
    offsets,
    pair_of,
    sinusoid,
)
from mtplug_kernels.reference import draw_seed

NO_LIMIT = -(2**30)  # every tile is far: nothing is looked up
# Keys from which a linear bias's reach is looked for: shorter calls don't repay the launches.
REACH_FROM = 2048
# Read here, because torch.compile of torch 2.11 does not know what a dataclass holds.
_FIELDS = {kind: tuple(x.name for x in fields(kind)) for kind in get_args(Position)}


def attention(
    q, k, v, position, causal, key_lengths, cu_seqlens, query_offset, scale, dropout_p, seed, return_lse
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """:func:`mtplug_kernels.attention` by the Triton operators; arguments are checked there."""
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    schemes = as_schemes(position)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if _is_decoding(q, k, v, schemes, cu_seqlens, dropout_p):
        out, lse2 = decoding.attention(q, k, v, schemes, causal, key_lengths, query_offset, scale)
        return (out, _natural(lse2)) if return_lse else out
    spans = _spans(q, k, key_lengths, cu_seqlens, query_offset)
    longest = []
    if cu_seqlens is not None and not torch.compiler.is_compiling():
        longest = [ends_of(cu)[0] for cu in pair_of(cu_seqlens)]
    i_BL = j_BL = None
    alike = cu_seqlens is None and isinstance(query_offset, int)
    if not alike and (Rotary in schemes or TransformerXL in schemes):
        i_BL, j_BL = _positions(q, k, cu_seqlens, query_offset)
    start = query_offset if alike else 0

    if rotary := schemes.get(Rotary):
        q, k = operators.rotate(q, k, i_BL, j_BL, start, rotary)
    clipped = [s.table for s in schemes.values() if hasattr(s, "table")]
    if clipped:
        limit = max(table.shape[1] // 2 for table in clipped)
    else:
        limit = 0 if causal or Linear in schemes else NO_LIMIT
    table = qr = kr = slopes = reach = None
    if bias := schemes.get(ClippedBias):
        table = _widen(bias.table, limit).float()
    if by_query := schemes.get(QueryTable):
        qr = q @ _whole_units(_widen(by_query.table, limit)).to(q.dtype).mT
    if by_key := schemes.get(KeyTable):
        batch, heads, keys, size = k.shape
        k_grouped = k[:, :, None].expand(-1, -1, q.shape[1] // heads, -1, -1)
        rows = k_grouped.reshape(batch, q.shape[1], keys, size)
        if key_lengths is not None:  # padding may be NaN, which times a gradient of 0 is NaN
            padding = torch.arange(keys, device=k.device) >= key_lengths.to(k.device)[:, None]
            rows = rows.masked_fill(padding[:, None, :, None], 0)
        kr = rows @ _whole_units(_widen(by_key.table, limit)).to(k.dtype).mT
    if linear := schemes.get(Linear):
        slopes = linear.slopes.float()
        if q.numel() and k.shape[2] >= REACH_FROM and not clipped and TransformerXL not in schemes:
            reach = reach_of(q, k, slopes, scale)
    q2 = waves = None
    if xl := schemes.get(TransformerXL):
        q, q2, waves = _transformer_xl(q, k, xl, i_BL, start)

    need_left = (
        not causal
        and torch.is_grad_enabled()
        and any(x is not None and x.requires_grad for x in (table, qr))
    )
    seed = draw_seed(dropout_p, seed)
    # Mixed dtypes inside the operator would be an error under autocast: it sees none.
    with torch.autocast(q.device.type, enabled=False):
        out, lse2, _ = operators.attend_with_gradients(
            q, k, v, table, qr, kr, slopes, q2, waves, spans, reach,
            query_offset if isinstance(query_offset, int) else None, limit,
            cu_seqlens is not None, causal, float(scale), float(dropout_p), seed, longest, need_left,
        )  # fmt: skip
    return (out, _natural(lse2)) if return_lse else out


@torch.no_grad()
def reach_of(q: Tensor, k: Tensor, slopes: Tensor, scale: float) -> Tensor:
    """(B, H) int32: beyond this distance from its nearest key a row's weights are below 2^-32 together.

    By Cauchy and Schwarz no scaled q.k leaves [-b, b], b = scale max|q_i| max|k_j|. With t the
    distance beyond that of the nearest key, which a slope m counts against, a weight is at most
    exp(2b - m t), and their sum over both sides beyond R at most 2 exp(2b - m R) / m.
    """
    q_norm_BH, k_norm_BG = (
        torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).amax(2) for x in (q, k)
    )
    most_BH = q_norm_BH * k_norm_BG.repeat_interleave(q.shape[1] // k.shape[1], 1)
    bound_BH = 1.001 * scale * most_BH  # the norms are rounded
    reach_BH = (2 * bound_BH + 33 * math.log(2.0) - slopes.log()) / slopes
    # Written so that slopes that are not positive, and norms that are not finite, have no end.
    return torch.where((slopes > 0) & (reach_BH < -NO_LIMIT), reach_BH.ceil(), -NO_LIMIT).int()


def _is_decoding(q, k, v, schemes, cu_seqlens, dropout_p) -> bool:
    """Few rows, and nothing that only the forward kernel does: gradients, dropout, packing."""
    parts = [getattr(s, name) for kind, s in schemes.items() for name in _FIELDS[kind]]
    tensors = [q, k, v, *parts]
    gradient = torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in tensors
    )
    few = q.shape[2] <= decoding.MAX_QUERIES
    return few and not gradient and cu_seqlens is None and dropout_p == 0.0


def _natural(lse2: Tensor) -> Tensor:
    """From units of log 2, +inf where a row sees no key, to natural ones, -inf there."""
    lse = lse2.detach() * math.log(2.0)
    return torch.where(lse == math.inf, -math.inf, lse)


def _widen(table: Tensor, limit: int) -> Tensor:
    """The same table clipped at a larger distance, so that schemes given together agree on it."""
    more = limit - table.shape[1] // 2
    if not more:
        return table
    sides = [-1] * table.ndim
    sides[1] = more
    return torch.cat([table[:, :1].expand(sides), table, table[:, -1:].expand(sides)], 1)


def _whole_units(table: Tensor) -> Tensor:
    """Zeros behind a (H, C, D) table, so that its product's rows begin at multiples of 16 bytes."""
    return torch.nn.functional.pad(table, (0, 0, 0, -table.shape[1] % 8))


def _spans(q, k, key_lengths, cu_seqlens, query_offset) -> Tensor | None:
    """Per sequence (first query, queries, first key, keys, offset); None where all are alike."""
    at = {"device": q.device, "dtype": torch.int32}
    if cu_seqlens is None:
        if key_lengths is None and isinstance(query_offset, int):
            return None
        spans = torch.zeros(len(q), 5, **at)
        spans[:, 1] = q.shape[2]
        spans[:, 3] = k.shape[2] if key_lengths is None else key_lengths.clamp(0, k.shape[2])
        spans[:, 4] = query_offset
        return spans
    cu_q, cu_k = _starts(cu_seqlens, at)
    offset_S = offsets(query_offset, len(cu_q) - 1, at)
    return torch.stack([cu_q[:-1], cu_q.diff(), cu_k[:-1], cu_k.diff(), offset_S], 1)


def _starts(cu_seqlens, at) -> tuple[Tensor, Tensor]:
    cu_q, cu_k = pair_of(cu_seqlens)
    return cu_q.to(**at), cu_k.to(**at)


def _transformer_xl(
    q: Tensor, k: Tensor, xl: TransformerXL, i_BL: Tensor | None, start: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q + u, and (B, H, Q, P) and (K, P), the halves of :func:`positions.augment_transformer_xl`.

    What multiplies a key's sines is -g_sin cos + g_cos sin, its cosines g_sin sin + g_cos cos. That
    is a pair (g_sin, g_cos) turned, times -1, but for the sign of the second: it moves to the key.
    """
    features = xl.weight.shape[-1]
    work = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        q_work = q.to(work)
        g_BHLP = (q_work + xl.v[:, None].to(work)) @ xl.weight.to(work)
        longer = (q_work + xl.u[:, None].to(work)).to(q.dtype)
    q2, _ = operators.turn_pairs_with_gradients(
        g_BHLP, None, i_BL, None, start, 1e4, features, False, -1.0, -1.0, q.dtype
    )
    # Positions of keys start at 0 in every sequence, packed or not.
    sin_j, cos_j = sinusoid(torch.arange(k.shape[2], device=k.device), features).chunk(2, -1)
    return longer, q2, torch.cat([sin_j, -cos_j], -1).to(k.dtype)


def _positions(q, k, cu_seqlens, query_offset) -> tuple[Tensor, Tensor]:
    """Positions of all queries and of all keys, (B or 1, L) each."""
    at = {"device": q.device, "dtype": torch.int32}
    queries, keys = (torch.arange(x.shape[2], device=q.device) for x in (q, k))
    if cu_seqlens is None:
        return offsets(query_offset, len(q), at)[:, None] + queries, keys[None]
    cu_q, cu_k = _starts(cu_seqlens, at)
    offset_S = offsets(query_offset, len(cu_q) - 1, at)
    of_q, of_k = (
        torch.bucketize(x, cu[1:], right=True).clamp(max=len(cu) - 2)
        for x, cu in ((queries, cu_q), (keys, cu_k))
    )
    i_L = queries - cu_q[of_q] + offset_S[of_q]
    return i_L[None], (keys - cu_k[of_k])[None]
