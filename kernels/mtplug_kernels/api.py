"""The public call: checks its arguments in one line each and picks a backend.

Shape legend: B batch, H query heads, G key heads, Q queries, K keys, D head size, V value size.
"""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

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
    ends_of,
    pair_of,
    rotary_dim,
)

MOST = 2**30  # positions are counted in 32 bits
_BACKENDS = ("auto", "triton", "reference")
_HAS_TRITON = importlib.util.find_spec("triton") is not None  # here: torch.compile cannot look


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
            for cross-attention. Positions start at 0 in every sequence. Rows behind the last
            sequence give zeros and take no part. Inside torch.compile there must be none, and
            nothing is checked.
        query_offset: position of the first query, an int or one per sequence, within ±2^30.
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
    _check(
        q_BHQD, k_BGKD, v_BGKV, schemes, key_lengths, cu_seqlens, query_offset, scale, dropout_seed
    )
    obstacle = why_not_triton(q_BHQD, k_BGKD, v_BGKV, schemes) if backend != "reference" else ""
    if backend == "triton" and obstacle:
        raise RuntimeError(f"backend='triton' is not possible: {obstacle}")
    triton = backend == "triton" or (backend == "auto" and not obstacle and q_BHQD.is_cuda)
    behind = 0
    if cu_seqlens is not None and not torch.compiler.is_compiling():
        last_q, last_k = (ends_of(starts)[1] for starts in pair_of(cu_seqlens))
        for last, x, what in ((last_q, q_BHQD, "queries"), (last_k, k_BGKD, "keys")):
            if last > x.shape[2]:
                raise ValueError(f"cu_seqlens ends at {last}, but there are {x.shape[2]} {what}")
        # Rows of no sequence may hold anything: nobody sees them, and what they give is zero.
        behind = q_BHQD.shape[2] - last_q
        q_BHQD, k_BGKD, v_BGKV = q_BHQD[:, :, :last_q], k_BGKD[:, :, :last_k], v_BGKV[:, :, :last_k]
    if triton:
        from mtplug_kernels import lowering

        attend: Any = lowering.attention
    else:
        attend = reference.attention
    found = attend(
        q_BHQD, k_BGKD, v_BGKV, position, causal, key_lengths, cu_seqlens, query_offset, scale,
        dropout_p, dropout_seed, return_lse,
    )  # fmt: skip
    if not behind:
        return found
    out, lse = found if return_lse else (found, None)
    out = torch.nn.functional.pad(out, (0, 0, 0, behind))
    if lse is None:
        return out
    return out, torch.nn.functional.pad(lse, (0, behind), value=-math.inf)


def rotate(
    q_BHQD: Tensor, k_BGKD: Tensor, i_BQ: Tensor, j_BK: Tensor, rotary: Rotary
) -> tuple[Tensor, Tensor]:
    """Queries turned by positions i and keys by j, (B or 1, L) integers: :func:`positions.rotate` of
    both, and on a GPU with Triton in one pass over memory instead of some thirty."""
    if q_BHQD.is_cuda and not why_not_triton(q_BHQD, k_BGKD, k_BGKD, {}):
        from mtplug_kernels import operators

        return operators.rotate(q_BHQD, k_BGKD, i_BQ, j_BK, 0, rotary)
    return positions.rotate(q_BHQD, i_BQ, rotary), positions.rotate(k_BGKD, j_BK, rotary)


def why_not_triton(q: Tensor, k: Tensor, v: Tensor, schemes: dict) -> str:
    """The reason why the kernels cannot take this call; empty when they can."""
    # An operator would drop the derivative without a word. The level spares most calls the search.
    if not torch.compiler.is_compiling() and getattr(forward_ad, "_current_level", 0) >= 0:
        parts = (x for scheme in schemes.values() for x in vars(scheme).values())
        given = (x for x in (q, k, v, *parts) if isinstance(x, Tensor))
        if any(forward_ad.unpack_dual(x).tangent is not None for x in given):
            return "forward-mode derivatives (torch.func.jvp) are the reference's alone"
    if not _HAS_TRITON:
        return "triton is not installed"
    if not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {q.device.type}, not cuda (nor is TRITON_INTERPRET=1 set)"
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"{q.dtype} is not float16, bfloat16 or float32"
    xl = schemes.get(TransformerXL)
    size = max(q.shape[-1] + (xl.weight.shape[-1] if xl else 0), v.shape[-1])
    return f"a head of {size} features is longer than 256" if size > 256 else ""


def _check(q, k, v, schemes, key_lengths, cu_seqlens, query_offset, scale, dropout_seed) -> None:
    if not all(isinstance(x, Tensor) for x in (q, k, v)):
        kinds = ", ".join(type(x).__name__ for x in (q, k, v))
        raise TypeError(f"q, k, v must be tensors, not {kinds}")
    for name, x in (("k", k), ("v", v)):
        _check_device(name, x, q.device)
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"q, k, v must have 4 dimensions, not {q.ndim}, {k.ndim}, {v.ndim}")
    batch, heads, _, size = q.shape
    if k.shape[:3] != v.shape[:3] or k.shape[0] != batch or k.shape[3] != size:
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        raise ValueError(f"q, k, v of shapes {shapes} do not fit together")
    if not (heads and k.shape[1] and size and v.shape[3]):
        raise ValueError(f"q, k, v need heads and features, not {tuple(q.shape)}, {tuple(v.shape)}")
    if heads % k.shape[1]:
        raise ValueError(f"{heads} query heads are not a multiple of {k.shape[1]} key heads")
    if not q.dtype == k.dtype == v.dtype and not torch.is_autocast_enabled(q.device.type):
        raise TypeError(f"q, k, v have different dtypes: {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.is_floating_point():
        raise TypeError(f"q, k, v must be of floating point, not {q.dtype}")
    if isinstance(scale, Tensor):
        raise TypeError("scale must be a number; to learn it, multiply q by a parameter")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, not {scale}")
    if dropout_seed is not None and not (
        isinstance(dropout_seed, int) and -(2**63) <= dropout_seed < 2**63
    ):
        raise ValueError(f"dropout_seed must be an integer of 64 bits, not {dropout_seed!r}")
    sequences = batch
    if key_lengths is not None:
        if not _is_integers(key_lengths) or key_lengths.shape != (batch,):
            raise ValueError(
                f"key_lengths must be a tensor of ({batch},) integers{_not(key_lengths)}"
            )
        if cu_seqlens is not None:
            raise ValueError(
                "key_lengths are those of padding, cu_seqlens is without: give one of them"
            )
    if cu_seqlens is not None:
        starts = cu_seqlens if isinstance(cu_seqlens, (tuple, list)) else (cu_seqlens,)
        if len(starts) != 1 + isinstance(cu_seqlens, (tuple, list)) or not all(
            _is_integers(x) and x.ndim == 1 for x in starts
        ):
            raise ValueError(
                "cu_seqlens must be a tensor of (sequences + 1,) integers, or a pair of them"
            )
        if len({len(x) for x in starts}) > 1 or not len(starts[0]):
            lengths = " and ".join(str(len(x)) for x in starts)
            raise ValueError(f"cu_seqlens must hold sequences + 1 starts each, not {lengths}")
        if batch != 1:
            raise ValueError(f"cu_seqlens needs a batch of 1 with all sequences in it, not {batch}")
        sequences = len(starts[0]) - 1
    if not isinstance(query_offset, int) and (
        not _is_integers(query_offset) or query_offset.shape not in ((), (1,), (sequences,))
    ):
        wanted = f"an integer or a tensor of ({sequences},) integers, one a sequence"
        raise ValueError(f"query_offset must be {wanted}{_not(query_offset)}")
    if isinstance(query_offset, int) and abs(query_offset) > MOST:
        raise ValueError(f"query_offset must be within ±{MOST:,}, not {query_offset}")
    check_schemes(schemes, heads, size, q.device)


def check_schemes(schemes: dict[type, Any], H: int, d: int, device: torch.device) -> None:
    """Raises ValueError where a table does not fit ``H`` heads of ``d`` features, or is not on the device."""
    if scheme := schemes.get(ClippedBias):
        _check_tensor(
            "ClippedBias.table", scheme.table, device, f"({H}, 2D + 1), D at least 1", H, -1
        )
    if scheme := schemes.get(Linear):
        _check_tensor("Linear.slopes", scheme.slopes, device, f"({H},)", H)
    for kind in (QueryTable, KeyTable):
        if scheme := schemes.get(kind):
            wanted = f"({H} or 1, 2D + 1, {d}), D at least 1"
            _check_tensor(f"{kind.__name__}.table", scheme.table, device, wanted, (1, H), -1, d)
    if scheme := schemes.get(TransformerXL):
        _check_tensor("TransformerXL.u", scheme.u, device, f"({H}, {d})", H, d)
        _check_tensor("TransformerXL.v", scheme.v, device, f"({H}, {d})", H, d)
        wanted = f"({H} or 1, {d}, P), P even"
        _check_tensor("TransformerXL.weight", scheme.weight, device, wanted, (1, H), d, -2)
    if scheme := schemes.get(Rotary):
        rotary_dim(d, scheme)


def _is_integers(x: Any) -> bool:
    return isinstance(x, Tensor) and not (x.is_floating_point() or x.dtype == torch.bool)


def _not(x: Any) -> str:
    return f", not {x.dtype} of {tuple(x.shape)}" if isinstance(x, Tensor) else f", not {x!r}"


def _check_device(name: str, x: Tensor, device: torch.device) -> None:
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, q on {device}: they must be on one device")


def _check_tensor(
    name: str, x: Any, device: torch.device, wanted: str, *sizes: int | tuple[int, ...]
) -> None:
    """Sizes: the one or ones that are right; -1 any odd number above 1, -2 any even one above 0."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {wanted}, not {x!r}")
    good = x.ndim == len(sizes)
    for n, size in zip(x.shape, sizes, strict=False):
        if size == -1:
            good &= n % 2 == 1 and n > 1
        elif size == -2:
            good &= n % 2 == 0 and n > 0
        else:
            # Not `in`, which torch.compile answers by identity for sizes that vary.
            good &= any(n == one for one in (size if isinstance(size, tuple) else (size,)))
    if not good:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, it must be {wanted}")
    _check_device(name, x, device)
