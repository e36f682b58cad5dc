"""What a relative position adds to the attention score.

Each class is data only: the reference and the kernels read the same objects. With i the query
position (counted from ``query_offset``), j the key position and ``c = clip(i - j, -D, D) + D``::

    score = scale * (q.k + q.query_table[c] + k.key_table[c]) + bias[h, c] - slope[h] * |i - j|

Several schemes may be given together as a tuple, at most one of each class (DeBERTa is
``(QueryTable(a), KeyTable(b))``). ``Rotary`` turns q and k before anything else meets them.

Shape legend: H query heads, C = 2D+1 clipped distances, D head size in shapes of q and k,
P sinusoid features, N T5 buckets, L positions.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClippedBias:
    """A learned number per head and clipped distance; ``table`` is (H, 2D+1), in logits."""

    table: Tensor


@dataclass(frozen=True)
class Linear:
    """ALiBi (Press et al. 2022): minus ``slopes`` (H,), in logits per position, times |i - j|.

    In float32 a query is right to about slope * 2^-23 times the distance of the nearest key that it sees.
    """

    slopes: Tensor


@dataclass(frozen=True)
class QueryTable:
    """q . table[c], ``table`` (H or 1, 2D+1, d): Shaw et al. 2018; DeBERTa content-to-position."""

    table: Tensor


@dataclass(frozen=True)
class KeyTable:
    """k . table[c], ``table`` (H or 1, 2D+1, d): DeBERTa (He et al. 2021) position-to-content."""

    table: Tensor


@dataclass(frozen=True)
class TransformerXL:
    """(q + u).k + (q + v).W sinusoid(i - j), unclamped (Dai et al. 2019, section 3.3).

    ``u`` and ``v`` are (H, d), ``weight`` is (H or 1, d, P) with P even: P/2 sines, P/2 cosines.
    """

    u: Tensor
    v: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Rotary:
    """Rotation of q and k by their positions (Su et al. 2021).

    Args:
        base: wavelength base theta.
        dim: how many leading features of a head turn; all by default.
        interleaved: pair features (0, 1), (2, 3) ... as in the paper, instead of (f, f + dim/2)
            as most released checkpoints do.
    """

    base: float = 10000.0
    dim: int | None = None
    interleaved: bool = False


Position = ClippedBias | Linear | QueryTable | KeyTable | TransformerXL | Rotary
# `torch.compile` of torch 2.8 knows tuples of classes, and no unions.
_CLASSES = get_args(Position)


def as_schemes(position: Position | tuple | list | None) -> dict[type, Any]:
    """The given scheme or schemes by class; refuses duplicates and strangers."""
    given = position if isinstance(position, (tuple, list)) else (position,)
    schemes: dict[type, Any] = {}
    for scheme in given:
        if scheme is None:
            continue
        if not isinstance(scheme, _CLASSES):
            raise TypeError(
                f"position must come from mtplug_kernels.positions, not {type(scheme).__name__}"
            )
        if type(scheme) in schemes:
            raise ValueError(
                f"position holds two {type(scheme).__name__} schemes; add their tables"
            )
        schemes[type(scheme)] = scheme
    return schemes


def t5_bucket(
    distance: Tensor, *, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
) -> Tensor:
    """T5's bucket of ``distance`` = i - j (Raffel et al. 2020; the published function's steps).

    Half of a side's buckets are single distances, the rest grow logarithmically to max_distance.
    """
    exact = num_buckets // (4 if bidirectional else 2)
    if not 0 < exact < max_distance:
        raise ValueError(
            f"{num_buckets} buckets and max_distance {max_distance}: T5's formula needs at least "
            f"{4 if bidirectional else 2} buckets and a max_distance beyond the {exact} single ones"
        )
    start = torch.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        start = (distance < 0).long() * num_buckets
        distance = distance.abs()
    else:
        distance = distance.clamp(min=0)
    # float32 like the published code: in float64 a distance on a boundary may change its bucket.
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    large = (exact + (ratio * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return start + torch.where(distance < exact, distance, large)


def t5_table(weight_NH: Tensor, bidirectional: bool = True, max_distance: int = 128) -> Tensor:
    """ClippedBias's table (H, 2D+1) from T5's bucket weights (N, H), differentiably.

    D is where the last bucket begins, which is well before max_distance (91 for 32 buckets, 128
    and both directions): the shorter the table, the fewer tiles need a look-up.
    """
    # Kept, because a copy to a GPU waits for all that it still has to do. What traces, or is no plain
    # tensor, makes its own.
    plain = type(weight_NH) in (Tensor, torch.nn.Parameter)
    made = _t5_one_hot_kept if plain and not torch.compiler.is_compiling() else _t5_one_hot
    one_hot_CN = made(
        weight_NH.shape[0], max_distance, bidirectional, weight_NH.device, weight_NH.dtype
    )
    # A matrix product, because its gradient adds in a fixed order (an index's gradient does not).
    with torch.autocast(weight_NH.device.type, enabled=False):  # it would round what is only copied
        return (one_hot_CN @ weight_NH).T


def _t5_one_hot(
    num_buckets: int,
    max_distance: int,
    bidirectional: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """(C, N): which bucket each clipped distance is in."""
    # Not read off a tensor of buckets, which torch.compile and torch.export cannot look into.
    of_side = num_buckets // 2 if bidirectional else num_buckets
    exact = of_side // 2
    limit = 1
    if 0 < exact < max_distance:  # else t5_bucket says what is wrong
        limit += int(exact * (max_distance / exact) ** (1 - 1 / (of_side - exact)))
    with torch.inference_mode(False):  # what is kept may later meet weights that are trained
        bucket_C = t5_bucket(
            torch.arange(-limit, limit + 1),
            num_buckets=num_buckets,
            max_distance=max_distance,
            bidirectional=bidirectional,
        )
        return torch.nn.functional.one_hot(bucket_C, num_buckets).to(device, dtype)


_t5_one_hot_kept = functools.lru_cache(_t5_one_hot)


def alibi_slopes(num_heads: int) -> Tensor:
    """The published slopes (H,): 2^(-8h/H) for a power of two, else interpolated from the next."""
    if num_heads < 1:
        raise ValueError(f"alibi_slopes needs at least 1 head, not {num_heads}")
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    slopes += [2 ** (-4 * (2 * h + 1) / power) for h in range(num_heads - power)]
    return torch.tensor(slopes)


def sinusoid(position_L: Tensor, features: int) -> Tensor:
    """(…, P): P/2 sines then P/2 cosines of position * 10000^(-2f/P), in float64."""
    frequency = 10000.0 ** (
        -torch.arange(0, features, 2, dtype=torch.float64, device=position_L.device) / features
    )
    angle = position_L.double()[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def rotary_dim(size: int, rotary: Rotary) -> int:
    """How many features of a head of ``size`` turn."""
    dim = size if rotary.dim is None else rotary.dim
    if not isinstance(dim, int) or dim % 2 or not 0 < dim <= size:
        raise ValueError(f"Rotary dim must be even and from 2 to {size}, not {dim}")
    if not rotary.base > 0:
        raise ValueError(f"Rotary base must be positive, not {rotary.base}")
    return dim


def ends_of(starts: Tensor) -> tuple[int, int]:
    """Length of the longest packed sequence, and where the last ends.

    On a GPU the host waits for it, so the layers that share the tensor share the answer, until an operation of
    torch's changes it.

    Raises:
        ValueError: the starts do not ascend from 0.
    """
    # A deep copy takes over what is remembered, but not the identity.
    version = (
        (id(starts), starts._version) if starts.is_cuda and not starts.is_inference() else None
    )
    known = getattr(starts, "_ends", None)
    if known is None or version is None or known[0] != version:
        starts_S = starts.long()  # unsigned ones would wrap around where they descend
        lengths = torch.cat([starts_S.diff(), starts_S.new_zeros(1)])  # of no sequence, too
        told = torch.stack([starts_S[0], starts_S[-1], lengths.min(), lengths.max()])
        first, last, shortest, longest = told.tolist()
        if first != 0 or shortest < 0:
            raise ValueError(
                "cu_seqlens must ascend from 0, the start of each sequence and the end"
            )
        known = version, (longest, last)
        if version is not None:
            starts._ends = known  # type: ignore[attr-defined]
    return known[1]


def pair_of(cu_seqlens: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Starts among queries and among keys."""
    cu_q, cu_k = cu_seqlens if isinstance(cu_seqlens, (tuple, list)) else (cu_seqlens, cu_seqlens)
    return cu_q, cu_k


def offsets(query_offset: int | Tensor, sequences: int, at: dict) -> Tensor:
    """(sequences,): an offset for each. A number is filled in on the device: copied there from the
    host, every call would wait until the device has done all that came before."""
    if isinstance(query_offset, int):
        return torch.full((sequences,), query_offset, **at)
    return torch.as_tensor(query_offset, **at).expand(sequences)


def rotate(x_BHLD: Tensor, position_BL: Tensor, rotary: Rotary) -> Tensor:
    """Turn the first ``rotary.dim`` features of every row by its position, in float32 or better."""
    dim = rotary_dim(x_BHLD.shape[-1], rotary)
    exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=x_BHLD.device) / dim
    # Angles in float64: bfloat16 angles are meaningless beyond position 256.
    angle_B1LF = (position_BL.double()[..., None] * rotary.base**-exponent)[:, None]
    work = torch.promote_types(x_BHLD.dtype, torch.float32)
    cos, sin = angle_B1LF.cos().to(work), angle_B1LF.sin().to(work)
    turned = x_BHLD[..., :dim].to(work)
    if rotary.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    return torch.cat([turned.to(x_BHLD.dtype), x_BHLD[..., dim:]], -1)


def augment_transformer_xl(
    q_BHLD: Tensor, k_BGLD: Tensor, xl: TransformerXL, i_BL: Tensor, j_BL: Tensor
) -> tuple[Tensor, Tensor]:
    """Longer q and k whose dot product is Transformer-XL's score (before scale).

    sin(w(i-j)) and cos(w(i-j)) split by angle addition into a part of i, which goes to the query,
    and sinusoid(j), which goes to the key: (…, d + P) each. Rounded once, at the end.
    """
    features = xl.weight.shape[-1]
    phi = sinusoid(j_BL, features).to(k_BGLD.dtype)[:, None]
    phi = phi.expand(*k_BGLD.shape[:3], features)
    return transformer_xl_query(q_BHLD, xl, i_BL), torch.cat([k_BGLD, phi], -1)


def transformer_xl_query(q_BHLD: Tensor, xl: TransformerXL, i_BL: Tensor) -> Tensor:
    """(q + u, and what multiplies sinusoid(j)): the query's half of :func:`augment_transformer_xl`."""
    work = torch.promote_types(q_BHLD.dtype, torch.float32)
    with torch.autocast(q_BHLD.device.type, enabled=False):
        q_work = q_BHLD.to(work)
        g_BHLP = (q_work + xl.v[:, None].to(work)) @ xl.weight.to(work)
        g_sin, g_cos = g_BHLP.chunk(2, -1)
        sin, cos = (t.to(work)[:, None] for t in sinusoid(i_BL, xl.weight.shape[-1]).chunk(2, -1))
        tail = [-g_sin * cos + g_cos * sin, g_sin * sin + g_cos * cos]
        return torch.cat([q_work + xl.u[:, None].to(work), *tail], -1).to(q_BHLD.dtype)
