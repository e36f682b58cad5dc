"""The definition of every scheme in plain torch, written to be read and to be compared with.

It materialises (B, H, Lq, Lk), works in any dtype up to float64 and leaves gradients to autograd.

Shape legend: B batch, H query heads, G key heads (H a multiple of G), Q queries, K keys,
D head size, V value head size, C clipped distances, P sinusoid features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtplug_kernels import philox
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
    pair_of,
    rotate,
    sinusoid,
)


def attention(
    q_BHQD: Tensor,
    k_BGKD: Tensor,
    v_BGKV: Tensor,
    position: Position | tuple | None = None,
    causal: bool = False,
    key_lengths: Tensor | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    query_offset: int | Tensor = 0,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    return_lse: bool = False,
    backend: str = "reference",
) -> Tensor | tuple[Tensor, Tensor]:
    """Same arguments and results as :func:`mtplug_kernels.attention`, computed by definition."""
    if backend not in ("auto", "reference"):
        raise ValueError(f"reference.attention has no backend {backend!r}")
    batch = q_BHQD.shape[0]
    rest = {
        "schemes": as_schemes(position),
        "causal": causal,
        "scale": q_BHQD.shape[-1] ** -0.5 if scale is None else scale,
        "dropout_p": dropout_p,
        "seed": draw_seed(dropout_p, dropout_seed),
    }
    if cu_seqlens is None:
        offsets = torch.as_tensor(query_offset).expand(batch)
        out, lse = _attend(q_BHQD, k_BGKD, v_BGKV, offsets, key_lengths, **rest, sequence=0)
    else:
        out, lse = _packed(q_BHQD, k_BGKD, v_BGKV, cu_seqlens, query_offset, rest)
    return (out, lse) if return_lse else out


def draw_seed(dropout_p: float, seed: int | None) -> int:
    """The seed given, or one from torch's CPU generator (checkpointing replays that)."""
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), not {dropout_p}")
    if dropout_p == 0.0:
        return 0
    return int(torch.randint(2**62, ())) if seed is None else int(seed)


def _packed(q, k, v, cu_seqlens, query_offset, rest) -> tuple[Tensor, Tensor]:
    """Each sequence on its own, positions counted from its start."""
    for starts in pair_of(cu_seqlens):
        ends_of(starts)  # which refuses what does not ascend from 0
    cu_q, cu_k = (starts.tolist() for starts in pair_of(cu_seqlens))
    offsets = torch.as_tensor(query_offset).expand(len(cu_q) - 1)
    outs, lses = [], []
    for n in range(len(cu_q) - 1):
        rows, columns = slice(cu_q[n], cu_q[n + 1]), slice(cu_k[n], cu_k[n + 1])
        one = (q[:, :, rows], k[:, :, columns], v[:, :, columns], offsets[n : n + 1], None)
        out, lse = _attend(*one, **rest, sequence=n)
        outs.append(out)
        lses.append(lse)
    if not outs:
        return v.new_zeros(*q.shape[:3], v.shape[3]), q.new_full(q.shape[:3], -math.inf)
    behind = q.shape[2] - cu_q[-1]  # rows of no sequence
    out, lse = torch.cat(outs, 2), torch.cat(lses, 2)
    pad = torch.nn.functional.pad
    return pad(out, (0, 0, 0, behind)), pad(lse, (0, behind), value=-math.inf)


def _attend(q, k, v, offset_B, key_lengths, *, schemes, causal, scale, dropout_p, seed, sequence):
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    group = heads // k.shape[1]
    j_K = torch.arange(keys, device=q.device)
    if key_lengths is not None:  # padding may hold anything, and 0 * nan is nan
        padding = (j_K >= key_lengths.to(q.device)[:, None])[:, None, :, None]
        k, v = k.masked_fill(padding, 0.0), v.masked_fill(padding, 0.0)
    i_BQ = offset_B.to(q.device)[:, None] + torch.arange(queries, device=q.device)
    distance_BQK = i_BQ[:, :, None] - j_K
    if rotary := schemes.get(Rotary):
        q, k = rotate(q, i_BQ, rotary), rotate(k, j_K[None], rotary)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)

    scores = _scores(q, k, distance_BQK, schemes, scale)
    allowed = torch.ones(batch, 1, queries, keys, dtype=torch.bool, device=q.device)
    if key_lengths is not None:
        allowed = allowed & (j_K < key_lengths.to(q.device)[:, None])[:, None, None]
    if causal:
        allowed = allowed & (distance_BQK >= 0)[:, None]
    some = allowed.any(-1, keepdim=True)
    scores = scores.masked_fill(~allowed, -math.inf)
    # An empty row's softmax is NaN; give it finite scores first, so that gradients are zero too.
    weights = torch.softmax(scores.masked_fill(~some, 0.0), -1).masked_fill(~allowed, 0.0)
    lse = torch.logsumexp(scores.detach(), -1)
    if dropout_p:
        queries_I = torch.arange(queries, device=q.device)
        drawn = philox.keep_mask(seed, dropout_p, batch, heads, queries_I, j_K, sequence)
        weights = weights * drawn / (1.0 - dropout_p)
    return weights @ v, lse


def _scores(q, k, distance_BQK, schemes, scale) -> Tensor:
    """The sum that positions.py's docstring states, with Transformer-XL's instead of q.k."""
    if xl := schemes.get(TransformerXL):
        r_BQKP = sinusoid(distance_BQK, xl.weight.shape[-1]).to(q.dtype)
        g_BHQP = (q + xl.v[:, None].to(q.dtype)) @ xl.weight.to(q.dtype)
        content = (q + xl.u[:, None].to(q.dtype)) @ k.mT
        raw = content + torch.einsum("bhqp,bqkp->bhqk", g_BHQP, r_BQKP)
    else:
        raw = q @ k.mT
    bias = position_bias(q, k, distance_BQK, schemes, scale)
    return scale * raw if bias is None else scale * raw + bias


def position_bias(
    q_BHQD: Tensor, k_BHKD: Tensor, distance_BQK: Tensor, schemes: dict, scale: float
) -> Tensor | None:
    """What tables and slopes add to the scores, broadcastable to (B, H, Q, K); None for nothing.

    Args:
        q_BHQD, k_BHKD: keys as many heads as queries.
        distance_BQK: i - j; B may be 1.
        schemes: of `positions.as_schemes`; rotation and Transformer-XL are not of this form.
        scale: factor of the products with q and k.
    """
    shape = (q_BHQD.shape[0], q_BHQD.shape[1], *distance_BQK.shape[1:])

    def clipped(width: int) -> Tensor:
        limit = width // 2
        return distance_BQK.clamp(-limit, limit) + limit

    terms = []
    if by_query := schemes.get(QueryTable):
        qr_BHQC = q_BHQD @ by_query.table.to(q_BHQD.dtype).mT
        index = clipped(by_query.table.shape[1])[:, None].expand(shape)
        terms.append(scale * qr_BHQC.gather(-1, index))
    if by_key := schemes.get(KeyTable):
        kr_BHKC = k_BHKD @ by_key.table.to(k_BHKD.dtype).mT
        index = clipped(by_key.table.shape[1])[:, None].expand(shape)
        terms.append(scale * kr_BHKC.gather(-1, index.mT).mT)
    if bias := schemes.get(ClippedBias):
        table_HC = bias.table.to(q_BHQD.dtype)
        terms.append(table_HC[:, clipped(table_HC.shape[1])].transpose(0, 1))
    if linear := schemes.get(Linear):
        slopes = linear.slopes.to(q_BHQD.dtype)[:, None, None]
        terms.append(-slopes * distance_BQK[:, None].abs())
    return sum(terms[1:], terms[0]) if terms else None
