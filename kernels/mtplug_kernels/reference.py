"""Attention by its definition, in plain torch, of any precision: what fast versions are held to.

Shapes: B batch, H query heads, G key heads (G divides H), I queries, J keys, d head size of queries and
keys, E of values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtplug_kernels.philox import keep_mask
from mtplug_kernels.positions import (
    ClippedBias,
    KeyTable,
    Linear,
    Position,
    QueryTable,
    Rotary,
    TransformerXL,
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    position: Position | tuple[Position, ...] | None = None,
    causal: bool = False,
    key_lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    query_offset: int = 0,
    scale: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention with relative positions.

    Args:
        q: (B, H, I, d).
        k: (B, G, J, d); query head h looks at key head h // (H / G).
        v: (B, G, J, E).
        position: a scheme, or several that add up, as DeBERTa's two tables do.
        causal: query i sees keys up to `query_offset + i`.
        key_lengths: (B,) keys that are real; those after them are padding.
        cu_seqlens: (N + 1,) starts of N sequences packed along the length of a batch of one, and their
            end; sequences don't see each other.
        query_offset: absolute position of the first query.
        scale: of scores; 1 / sqrt(d) if not given.
        dropout_p: share of attention weights that are zeroed, the others scaled by 1 / (1 - p).
        dropout_seed: decides which, see `mtplug_kernels.philox.keep_mask`.
        return_lse: also return (B, H, I) log-sum-exp of the scores; -inf where nothing is seen.

    Returns:
        (B, H, I, E); zeros for a query that sees nothing.

    Raises:
        ValueError: shapes don't fit, or dropout lacks a seed.
    """
    _check(q, k, v, cu_seqlens, query_offset, dropout_p, dropout_seed)
    groups = q.shape[1] // k.shape[1]
    k_BHJd, v_BHJE = (x.repeat_interleave(groups, 1) for x in (k, v))
    schemes = position if isinstance(position, tuple) else (position,) if position else ()
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    i = torch.arange(query_offset, query_offset + q.shape[2], device=q.device)
    j = torch.arange(k.shape[2], device=q.device)
    distance_IJ = i[:, None] - j[None, :]

    scores_BHIJ = _scores(q, k_BHJd, schemes, i, j, distance_IJ, scale)
    seen = torch.ones_like(distance_IJ, dtype=torch.bool)[None, None]
    if causal:
        seen = seen & (distance_IJ >= 0)
    if key_lengths is not None:
        seen = seen & (j < key_lengths[:, None])[:, None, None, :]
    if cu_seqlens is not None:
        sequence = torch.bucketize(j, cu_seqlens[1:], right=True)
        seen = seen & (sequence[:, None] == sequence[None, :])
    scores_BHIJ = scores_BHIJ.masked_fill(~seen, -math.inf)

    # A row that sees nothing has a sum of zero; its weights are zero and not 0 / 0.
    highest = scores_BHIJ.amax(-1, keepdim=True).detach()
    highest = torch.where(highest == -math.inf, 0.0, highest)
    exponentials = (scores_BHIJ - highest).exp()
    total = exponentials.sum(-1, keepdim=True)
    weights_BHIJ = exponentials / torch.where(total == 0, 1.0, total)
    if dropout_p:
        assert dropout_seed is not None
        kept = keep_mask(tuple(weights_BHIJ.shape), dropout_p, dropout_seed, q.device)  # type: ignore[arg-type]
        weights_BHIJ = weights_BHIJ * kept / (1 - dropout_p)
    out = weights_BHIJ @ v_BHJE
    if return_lse:
        return out, (total.log() + highest).squeeze(-1)
    return out


def _scores(
    q: Tensor,
    k: Tensor,
    schemes: tuple[Position, ...],
    i: Tensor,
    j: Tensor,
    distance: Tensor,
    scale: float,
) -> Tensor:
    for scheme in schemes:
        if isinstance(scheme, Rotary):
            q, k = rotate(q, i, scheme.base), rotate(k, j, scheme.base)
    content_q = q
    for scheme in schemes:
        if isinstance(scheme, TransformerXL):
            content_q = q + scheme.u[:, None]
    products = content_q @ k.transpose(-1, -2)
    added: Tensor | float = 0.0
    for scheme in schemes:
        if isinstance(scheme, QueryTable):
            table_HIJd = scheme.table[:, _index(distance, scheme.table.shape[1])]
            products = products + torch.einsum("bhid,hijd->bhij", q, _heads(table_HIJd, q))
        elif isinstance(scheme, KeyTable):
            table_HIJd = scheme.table[:, _index(distance, scheme.table.shape[1])]
            products = products + torch.einsum("bhjd,hijd->bhij", k, _heads(table_HIJd, q))
        elif isinstance(scheme, TransformerXL):
            features = scheme.weight.shape[-1] // 2
            steps = torch.arange(features, device=q.device, dtype=torch.float64)
            angles = distance[..., None].double() * 10000.0 ** (-steps / features)
            phi_IJF = torch.cat([angles.sin(), angles.cos()], -1).to(q.dtype)
            weight = _heads(scheme.weight, q)
            turned = torch.einsum("bhid,hdf->bhif", q + scheme.v[:, None], weight)
            products = products + torch.einsum("bhif,ijf->bhij", turned, phi_IJF)
        elif isinstance(scheme, ClippedBias):
            added = added + scheme.table[:, _index(distance, scheme.table.shape[1])]
        elif isinstance(scheme, Linear):
            added = added - scheme.slopes[:, None, None] * distance.abs()
    return scale * products + added


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Turn coordinates 2f and 2f + 1 of (…, L, d) by `position · base^(-2f / d)`."""
    size = x.shape[-1]
    steps = torch.arange(0, size, 2, device=x.device, dtype=torch.float64)
    angles = positions[:, None].double() * base ** (-steps / size)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def _index(distance: Tensor, size: int) -> Tensor:
    reach = size // 2
    return distance.clamp(-reach, reach) + reach


def _heads(table: Tensor, q: Tensor) -> Tensor:
    return table.expand(q.shape[1], *table.shape[1:])


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | None,
    query_offset: int,
    dropout_p: float,
    dropout_seed: int | None,
) -> None:
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"shapes don't fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{k.shape[1]} key heads do not divide {q.shape[1]} query heads")
    if cu_seqlens is not None and (len(q) != 1 or q.shape[2] != k.shape[2] or query_offset):
        raise ValueError("cu_seqlens needs a batch of one, as many queries as keys, and no offset")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be at least 0 and below 1, not {dropout_p}")
    if dropout_p and dropout_seed is None:
        raise ValueError("dropout needs dropout_seed")
