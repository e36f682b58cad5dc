"""The public call: checks its arguments in one line each and picks a backend.

Shape legend: B batch, H query heads, G key heads, Q queries, K keys, D head size, V value size.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from mtplug_kernels import positions, reference
from mtplug_kernels.positions import (
    ClippedBias,
    KeyTable,
    Linear,
    Position,
    QueryTable,
    Rotary,
    TransformerXL,
    as_schemes,
)

_BACKENDS = ("auto", "triton", "reference")


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
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention with relative positions: (B, H, Q, V), zero for rows that see no key.

    Args:
        q_BHQD, k_BGKD, v_BGKV: queries, keys, values; H is a multiple of G.
        position: one scheme of :mod:`mtplug_kernels.positions`, several in a tuple, or None.
        causal: query i sees keys j <= i, with i counted from query_offset.
        key_lengths: (B,) integers; keys at or beyond it are padding.
        cu_seqlens: (sequences + 1,) starts of packed sequences, B = 1; a pair (queries, keys)
            for cross-attention. Positions start at 0 in every sequence.
        query_offset: position of the first query, an int or one per sequence.
        scale: factor of the dot products; 1/sqrt(D) by default. T5 has 1.
        dropout_p, dropout_seed: dropout of probabilities by Philox; the same seed gives the
            same mask in every backend. Without a seed one is drawn from torch's CPU generator.
        return_lse: also return the rows' natural logsumexp (B, H, Q), without gradient;
            -inf for rows that see no key.
        backend: "triton" (a GPU, or Triton's interpreter), "reference", or "auto": triton for
            CUDA tensors of at most 256 features a head, else reference.

    Raises:
        ValueError, TypeError: arguments that do not fit together.
        RuntimeError: backend="triton" where it cannot run; the message says why.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, not {backend!r}")
    schemes = as_schemes(position)
    _check(q_BHQD, k_BGKD, v_BGKV, schemes, key_lengths, cu_seqlens, scale)
    obstacle = why_not_triton(q_BHQD, v_BGKV, schemes) if backend != "reference" else ""
    if backend == "triton" and obstacle:
        raise RuntimeError(f"backend='triton' is not possible: {obstacle}")
    triton = backend == "triton" or (backend == "auto" and not obstacle and q_BHQD.is_cuda)
    rest: Any = (position, causal, key_lengths, cu_seqlens, query_offset, scale, dropout_p,
                 dropout_seed, return_lse)  # fmt: skip
    if not triton:
        return reference.attention(q_BHQD, k_BGKD, v_BGKV, *rest)
    from mtplug_kernels import lowering

    return lowering.attention(q_BHQD, k_BGKD, v_BGKV, *rest)


def rotate(
    q_BHQD: Tensor, k_BGKD: Tensor, i_BQ: Tensor, j_BK: Tensor, rotary: Rotary
) -> tuple[Tensor, Tensor]:
    """Queries turned by positions i and keys by j, (B or 1, L) integers: :func:`positions.rotate` of
    both, and on a GPU with Triton in one pass over memory instead of some thirty."""
    if q_BHQD.is_cuda and not why_not_triton(q_BHQD, k_BGKD, {}):
        from mtplug_kernels import lowering

        return lowering.rotate(q_BHQD, k_BGKD, i_BQ, j_BK, 0, rotary)
    return positions.rotate(q_BHQD, i_BQ, rotary), positions.rotate(k_BGKD, j_BK, rotary)


def why_not_triton(q: Tensor, v: Tensor, schemes: dict) -> str:
    """The reason why the kernels cannot take this call; empty when they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {q.device.type}, not cuda (nor is TRITON_INTERPRET=1 set)"
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"{q.dtype} is not float16, bfloat16 or float32"
    xl = schemes.get(TransformerXL)
    size = max(q.shape[-1] + (xl.weight.shape[-1] if xl else 0), v.shape[-1])
    return f"a head of {size} features is longer than 256" if size > 256 else ""


def _check(q, k, v, schemes, key_lengths, cu_seqlens, scale) -> None:
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"q, k, v must have 4 dimensions, not {q.ndim}, {k.ndim}, {v.ndim}")
    batch, heads, _, size = q.shape
    if k.shape[:3] != v.shape[:3] or k.shape[0] != batch or k.shape[3] != size:
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        raise ValueError(f"q, k, v of shapes {shapes} do not fit together")
    if heads % k.shape[1]:
        raise ValueError(f"{heads} query heads are not a multiple of {k.shape[1]} key heads")
    if not q.dtype == k.dtype == v.dtype and not torch.is_autocast_enabled(q.device.type):
        raise TypeError(f"q, k, v have different dtypes: {q.dtype}, {k.dtype}, {v.dtype}")
    if scale is not None and not scale > 0:
        raise ValueError(f"scale must be positive, not {scale}")
    if key_lengths is not None and (cu_seqlens is not None or key_lengths.shape != (batch,)):
        raise ValueError(f"key_lengths must be ({batch},), and absent with cu_seqlens")
    if cu_seqlens is not None and batch != 1:
        raise ValueError(f"cu_seqlens needs a batch of 1 with all sequences in it, not {batch}")
    for kind, first in ((ClippedBias, (heads,)), (Linear, (heads,)), (QueryTable, (1, heads)),
                        (KeyTable, (1, heads)), (TransformerXL, (1, heads))):  # fmt: skip
        if scheme := schemes.get(kind):
            _check_table(kind, scheme, first, size)


def _check_table(kind, scheme, first, size) -> None:
    name = {Linear: "slopes", TransformerXL: "weight"}.get(kind, "table")
    shape = tuple(getattr(scheme, name).shape)
    want = {ClippedBias: 2, Linear: 1}.get(kind, 3)
    good = len(shape) == want and shape[0] in first
    if good and kind in (ClippedBias, QueryTable, KeyTable):
        good = shape[1] % 2 == 1 and shape[1] >= 3
    if good and kind in (QueryTable, KeyTable):
        good = shape[2] == size
    if good and kind is TransformerXL:
        vectors = {tuple(scheme.u.shape), tuple(scheme.v.shape)}
        good = shape[1] == size and shape[2] % 2 == 0 and vectors == {(first[1], size)}
    if not good:
        raise ValueError(f"{kind.__name__}.{name} has shape {shape}; see its docstring")
