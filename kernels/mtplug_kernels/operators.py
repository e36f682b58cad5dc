"""The torch operators ``attend`` and its backward and ``turn_pairs``, which launch the kernels.

Being operators with fake implementations, they pass through torch.compile and checkpointing.

Shape legend: B batch, H query heads, G key heads, Q queries, K keys, D head size, V value size,
P sinusoid features, S sequences (B, unless packed), C = 2 * limit + 1 clipped distances.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mtplug_kernels.philox import threshold
from mtplug_kernels.positions import Rotary, rotary_dim
from mtplug_kernels.triton_kernels.backward import (
    backward_keys,
    backward_products,
    backward_queries,
    backward_table,
    finish_table,
)
from mtplug_kernels.triton_kernels.forward import forward
from mtplug_kernels.triton_kernels.turning import turn
from mtplug_kernels.tuning import (
    Blocks,
    blocks,
    capability,
    products_together,
    size_of_tiles,
)

LOG2E = math.log2(math.e)
_PAD = 256  # at least BM + BN of every configuration
_TABLE_PARTS = 16  # of a head's rows, at most, whose gradients of the table are summed apart
_AT_A_TIME = 1024  # a power of two: of a table's distances, tiles and sequences
_TURNED_HEADS = 8  # by a program, which finds their angles once: they take longer than memory does


def on_its_device(launch: Callable) -> Callable:
    """Triton launches on the current GPU, which need not be the one of the tensors: make it so."""

    @functools.wraps(launch)
    def there(x: Tensor, *arguments):
        if x.is_cuda and x.device.index != torch.cuda.current_device():
            with torch.cuda.device(x.device):
                return launch(x, *arguments)
        return launch(x, *arguments)

    return there


@torch.library.custom_op("mtplug_kernels::attend", mutates_args=())
@on_its_device
def attend(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, qr: Tensor | None,
    kr: Tensor | None, slopes: Tensor | None, q2: Tensor | None, waves: Tensor | None,
    spans: Tensor | None, reach: Tensor | None, offset: int | None, limit: int, packed: bool,
    causal: bool, scale: float, dropout_p: float, seed: int, longest: Sequence[int], need_left: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (B, H, Q, V) and logsumexp (B, H, Q) float32 in units of log 2, +inf for empty rows.

    Third, if need_left, which the gradients of table and qr want in both directions: (B, H, Q)
    float32, what of a row's weights lies on the left side; else an empty tensor.

    table (H, C) and slopes (H,) are in logits; qr (B, H, Q, W) and kr (B, H, K, W) in units of
    q.k, W at least C. q2 (B, H, Q, P) and waves (K, P), without gradient, add q2.waves[j], j
    counted in its sequence. spans (S, 5) int32: first query, queries, first key, keys, position
    of the first query; without it all rows of q and k take part. offset: that position; None where
    sequences differ in it.
    reach (B, H) int32, or all tiles are visited: how far from its nearest key a query's weights count.
    longest: queries and keys of the longest sequence; empty: read from spans, which waits for the device.
    """
    call = _Call(
        q, k, v, table, qr, kr, slopes, q2, waves, spans, reach, offset, limit, packed, causal,
        scale, dropout_p, seed, longest,
    )  # fmt: skip
    if call.empty:
        lse = q.new_full(q.shape[:3], math.inf, dtype=torch.float32)
        return q.new_zeros(call.out_shape), lse, lse.new_zeros(lse.shape if need_left else 0)
    # Every row of a padded batch is written, but not those of a packed one after its sequences.
    out = call.fresh(q.new_empty(call.out_shape))
    lse = call.fresh(q.new_empty(q.shape[:3], dtype=torch.float32), math.inf)
    left_p = call.fresh(torch.empty_like(lse)) if need_left else lse.new_empty(0)
    use = call.blocks("forward")
    blocks = cdiv(call.max_queries, use.queries)
    forward[(blocks * call.sequences * q.shape[1],)](
        call.q, call.tiles(call.k, use.keys), call.tiles(call.v, use.keys), call.q2,
        call.tail(call.waves, use.keys), out, lse, left_p, *call.schemes, call.reach, *strides(call.q),
        call.tail_step, *strides(out), *call.rows, blocks, q.shape[1], call.group, *call.clip,
        call.scale2, *call.dropout, **call.flags, HAS_TABLE=table is not None,
        HAS_REACH=reach is not None, NEED_LEFT=need_left, **call.sizes, **use.tile, **use.options,
    )  # fmt: skip
    return out, lse, left_p


@attend.register_fake
def _(q, k, v, table, qr, kr, slopes, q2, waves, spans, reach, offset, limit, packed, causal,
      scale, dropout_p, seed, longest, need_left):  # fmt: skip
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    return out, lse, lse.new_empty(lse.shape if need_left else 0)


@torch.library.custom_op("mtplug_kernels::attend_backward", mutates_args=())
@on_its_device
def attend_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, left_p: Tensor,
    table: Tensor | None, qr: Tensor | None, kr: Tensor | None,
    slopes: Tensor | None, q2: Tensor | None, waves: Tensor | None, spans: Tensor | None,
    reach: Tensor | None, offset: int | None, limit: int, packed: bool, causal: bool, scale: float,
    dropout_p: float, seed: int, longest: Sequence[int], need_left: bool, need_table: bool, need_slopes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, table, qr, kr, slopes, q2; empty tensors for what is absent."""
    call = _Call(
        q, k, v, table, qr, kr, slopes, q2, waves, spans, reach, offset, limit, packed, causal,
        scale, dropout_p, seed, longest,
    )  # fmt: skip
    heads = q.shape[1]
    nothing = q.new_empty(0)
    dqr, dkr = (q if x is None else x.new_zeros(x.shape) for x in (qr, kr))
    if call.empty:
        dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        dq2 = nothing if q2 is None else rows_of_whole_units(q2).zero_()
        dslope = lse.new_zeros(lse.shape)
        dtable = torch.zeros_like(table) if need_table and table is not None else nothing
    else:
        dout = aligned(dout)
        # Every row that a padded batch's queries have is written; padding keys' rows are not.
        dq = call.fresh(torch.empty(q.shape, dtype=q.dtype, device=q.device))
        dq2 = dq if q2 is None else call.fresh(rows_of_whole_units(call.q2))
        dk, dv = (
            (torch.zeros if spans is not None else torch.empty)(
                x.shape, dtype=x.dtype, device=x.device
            )
            for x in (k, v)
        )
        delta = call.fresh(torch.empty_like(lse))
        left = call.fresh(torch.empty_like(lse)) if need_left and qr is not None else lse
        together = products_together(call.padded, call.parts)
        has_lses = qr is not None or (table is not None and together)
        lses = lse.new_empty(*lse.shape[:2], 3, lse.shape[2]) if has_lses else lse
        dslope = call.fresh(torch.empty_like(lse)) if need_slopes else lse
        has_table = {"HAS_TABLE": table is not None}
        has_reach = {"HAS_REACH": reach is not None}
        use = call.blocks("backward_queries")
        blocks = cdiv(call.max_queries, use.queries)
        lefts = lse
        if need_left and table is not None:  # of a block of rows
            lefts = call.fresh(lse.new_empty(call.sequences, heads, blocks))
        backward_queries[(blocks * call.sequences * heads,)](
            call.q, call.tiles(call.k, use.keys), call.tiles(call.v, use.keys), call.q2,
            call.tail(call.waves, use.keys), out, dout, dq, dq2, lse, left_p, lses, delta, left, lefts, dslope,
            *call.schemes, call.reach, *strides(call.q, out, dout, dq), call.tail_step, *call.rows,
            blocks, heads, call.group, *call.clip, scale, call.scale2, *call.dropout,
            **call.flags, **has_table, **has_reach, NEED_LEFT=need_left, NEED_SLOPE=need_slopes,
            HAS_LSES=has_lses, **call.sizes, **use.tile, **use.options,
        )  # fmt: skip
        use = call.blocks("backward_keys")
        blocks = cdiv(call.max_keys, use.keys)
        backward_keys[(blocks * call.sequences * k.shape[1],)](
            call.tiles(call.q, use.queries), call.k, call.v, call.tail(call.q2, use.queries),
            call.waves, call.tiles(dout, use.queries), dk, dv, dkr, lse, lses, delta,
            *call.schemes[:3], *call.schemes[4:], call.reach, *strides(call.k, call.v, dk, dv),
            call.tail_step, *call.rows, blocks, k.shape[1], call.group, *call.clip, scale, call.scale2,
            *call.dropout, **call.flags, **has_table, **has_reach, HAS_LSES=has_lses, TOGETHER=together,
            **call.sizes, **use.tile, **use.options,
        )  # fmt: skip
        if qr is not None or kr is not None:
            use = call.blocks("backward_products")
            blocks = cdiv(call.max_queries, use.queries)
            backward_products[(blocks * call.sequences * heads,)](
                call.q, call.tiles(call.k, use.keys), call.tiles(call.v, use.keys), call.q2,
                call.tail(call.waves, use.keys), dout, dqr, dkr, lse, delta, left, *call.schemes,
                *strides(call.q, dout), call.tail_step, *call.rows, blocks, heads, call.group,
                *call.clip, scale, call.scale2, *call.dropout, **call.flags, **has_table,
                **call.sizes, **use.tile, **use.options,
            )  # fmt: skip
        dtable = _dtable(call, dout, lse, delta, lefts) if need_table else nothing
    dslopes = dslope.sum((0, 2)) if need_slopes else nothing
    return (
        dq, dk, dv, dtable, nothing.clone() if qr is None else dqr,
        nothing.clone() if kr is None else dkr,
        dslopes if need_slopes else nothing.clone(), nothing.clone() if q2 is None else dq2,
    )  # fmt: skip


@attend_backward.register_fake
def _(dout, q, k, v, out, lse, left_p, table, qr, kr, slopes, q2, waves, spans, reach, offset, limit,
      packed, causal, scale, dropout_p, seed, longest, need_left, need_table, need_slopes):  # fmt: skip
    def like(x, wanted=True):
        return q.new_empty(0) if x is None or not wanted else x.new_empty(x.shape)

    return (
        like(q), like(k), like(v), like(table, need_table), like(qr), like(kr),
        like(slopes, need_slopes), like(q2) if q2 is None else rows_of_whole_units(q2),
    )  # fmt: skip


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, table, qr, kr, slopes, q2, waves, spans, reach, *ctx.rest = inputs
    ctx.set_materialize_grads(False)  # of logsumexp and left share, which nothing reads
    ctx.save_for_backward(q, k, v, *output, table, qr, kr, slopes, q2, waves, spans, reach)


def _backward(ctx, dout, *_):
    need_table, need_slopes = ctx.needs_input_grad[3], ctx.needs_input_grad[6]
    saved = ctx.saved_tensors  # once: checkpointing refuses a second unpacking
    grads = attend_backward(dout, *saved, *ctx.rest, need_table, need_slopes)
    present = [x is not None for x in saved[6:11]]
    present[0], present[3] = need_table, need_slopes
    optional = [g if there else None for g, there in zip(grads[3:], present, strict=True)]
    return (*grads[:3], *optional, *[None] * 12)


def _with_gradients(operator, setup_context: Callable, backward: Callable) -> Callable:
    """The operator as a function, at less cost: torch's wrapper of one with registered gradients reads
    the whole schema once for each argument, which takes longer than a launch."""
    operator.register_autograd(backward, setup_context=setup_context)

    class Quick(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = operator(*inputs)
            setup_context(ctx, inputs, output)
            return output

    Quick.backward = staticmethod(backward)  # type: ignore[assignment]

    def call(*inputs):
        return Quick.apply(*inputs) if torch.is_grad_enabled() else operator(*inputs)

    return call


attend_with_gradients = _with_gradients(attend, _setup_context, _backward)


@torch.library.custom_op("mtplug_kernels::turn_pairs", mutates_args=())
@on_its_device
def turn_pairs(
    x: Tensor, y: Tensor | None, x_positions: Tensor | None, y_positions: Tensor | None, start: int,
    base: float, dim: int, interleaved: bool, cos_sign: float, sin_sign: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x (B, H, Q, D) and y (B, G, K, D), as dtype, with their leading dim features turned by their positions.

    Pair f of dim / 2 turns by position * base^(-2f/dim), its cosine and sine times their signs.
    positions (B or 1, L) integers; without them row l of x is at start + l, and of y at l. Without
    y the second result is empty.
    """
    given = (
        [(x, x_positions, start)] if y is None else [(x, x_positions, start), (y, y_positions, 0)]
    )
    size, pairs = x.shape[3], dim // 2
    widths = next_power_of_2(pairs), next_power_of_2(size)
    block = max(1, 2048 // widths[1])
    results, sides, programs = [], [], []
    for z, positions, first in given:
        z = z if z.stride(-1) == 1 else z.contiguous()
        out = torch.empty(z.shape, dtype=dtype, device=z.device)
        heads, length = z.shape[1:3]
        step = length if positions is not None and len(positions) > 1 else 0
        at = z if positions is None else positions.contiguous()
        results.append(out)
        sides.append((z, out, at, step, first, *strides(z, out), heads, length))
        programs.append(len(z) * cdiv(heads, _TURNED_HEADS) * cdiv(length, block))
    if sum(programs):
        turn[(sum(programs),)](
            *sides[0], programs[0], *sides[-1], size, HAS_Y=y is not None,
            HAS_POSITIONS=x_positions is not None, RATE=-2 * math.log2(base) / dim, COS_SIGN=cos_sign,
            SIN_SIGN=sin_sign, PAIRS=pairs, INTERLEAVED=interleaved, HAS_REST=dim < size,
            HEADS=_TURNED_HEADS, BR=block, BF=widths[0], BD=widths[1],
        )  # fmt: skip
    return results[0], x.new_empty(0) if y is None else results[1]


@turn_pairs.register_fake
def _(x, y, x_positions, y_positions, start, base, dim, interleaved, cos_sign, sin_sign, dtype):
    second = x.new_empty(0) if y is None else y.new_empty(y.shape, dtype=dtype)
    return x.new_empty(x.shape, dtype=dtype), second


def _keep_turn(ctx, inputs, output) -> None:
    x, y, *positions, ctx.start, ctx.base, ctx.dim, ctx.interleaved, ctx.cos, ctx.sin, _ = inputs
    ctx.save_for_backward(*positions)
    ctx.dtype, ctx.both = x.dtype, y is not None


def _turn_back(ctx, dx, dy):
    dx, dy = turn_pairs(
        dx, dy if ctx.both else None, *ctx.saved_tensors, ctx.start, ctx.base, ctx.dim,
        ctx.interleaved, ctx.cos, -ctx.sin, ctx.dtype,
    )  # fmt: skip
    return dx, dy if ctx.both else None, *[None] * 9


turn_pairs_with_gradients = _with_gradients(turn_pairs, _keep_turn, _turn_back)


def rotate(
    q: Tensor,
    k: Tensor | None,
    i_BL: Tensor | None,
    j_BL: Tensor | None,
    start: int,
    rotary: Rotary,
) -> tuple[Tensor, Tensor]:
    """:func:`positions.rotate` of both in one pass; without positions row l of q is at start + l. Without
    k the second result is empty."""
    dim = rotary_dim(q.shape[-1], rotary)
    return turn_pairs_with_gradients(
        q, k, i_BL, j_BL, start, float(rotary.base), dim, rotary.interleaved, 1.0, 1.0, q.dtype
    )


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def aligned(x: Tensor) -> Tensor:
    """x, or a copy, in which rows begin at multiples of 16 bytes: the copy engine's rule."""
    unit = 16 // x.element_size()
    apart = (
        n == 1 or (s > 0 and s % unit == 0)
        for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True)
    )
    if x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and all(apart):
        return x
    return rows_of_whole_units(x).copy_(x)


def rows_of_whole_units(x: Tensor) -> Tensor:
    """A new tensor of x's shape and type, whose rows follow each other, at multiples of 16 bytes."""
    unit = 16 // x.element_size()
    size = x.shape[-1]
    return x.new_empty(*x.shape[:-1], -(-size // unit) * unit)[..., :size]


def strides(*tensors: Tensor) -> list[int]:
    """(batch, head, row) strides of each."""
    return [n for x in tensors for n in x.stride()[:3]]


def _width(x: Tensor) -> int:
    """Features of a tile."""
    return max(16, next_power_of_2(x.shape[-1]))


class _Call:
    """What the launches of one call share."""

    def __init__(
        self, q, k, v, table, qr, kr, slopes, q2, waves, spans, reach, offset, limit, packed,
        causal, scale, p, seed, longest,
    ):  # fmt: skip
        self.q, self.k, self.v = aligned(q), aligned(k), aligned(v)
        self.limit, self.packed, self.causal = limit, packed, causal
        self.group = q.shape[1] // k.shape[1]
        self.out_shape = (*q.shape[:3], v.shape[3])
        self.sequences = len(q) if spans is None else len(spans)
        self.max_queries, self.max_keys = longest or (q.shape[2], k.shape[2])
        self.empty = not (q.numel() and k.numel() and v.numel() and self.sequences)
        if packed and not longest and not self.empty:
            _, self.max_queries, _, self.max_keys, _ = spans.max(0).values.tolist()
        if spans is not None and not packed and not self.empty:
            # Padding may hold anything, and 0 * nan is nan.
            padding = torch.arange(k.shape[2], device=k.device) >= spans[:, 3, None]
            self.k, self.v = (
                aligned(x.masked_fill(padding[:, None, :, None], 0)) for x in (self.k, self.v)
            )
        if q2 is None:  # something for the arguments that no kernel then reads
            self.q2, self.waves, self.tail_step = self.q, self.k, 0
        else:
            self.q2, self.waves = aligned(q2.contiguous()), aligned(waves.contiguous())
            unit = 16 // q2.element_size()
            self.tail_step = -(-q2.shape[-1] // unit) * unit
        self.scale2 = scale * LOG2E
        self.dropout = (seed, threshold(p), 1.0 / (1.0 - p))
        self.pad = limit + _PAD if table is not None else 0
        if table is not None:
            # Over j - i, so that neighbouring keys are neighbours in memory.
            table = torch.nn.functional.pad(
                table.float().flip(1) / scale, (_PAD, _PAD), "replicate"
            )
        slopes = None if slopes is None else slopes.float() / scale
        qr, kr = (x if x is None else x.contiguous() for x in (qr, kr))
        width = next((x.shape[-1] for x in (qr, kr) if x is not None), 0)
        self.clip = limit, width, self.pad
        # The end columns, which far tiles take: whole rows of memory instead of one in 2 D + 1.
        ends = [
            x if x is None else x[..., : 2 * limit + 1 : 2 * limit].float().mT.contiguous()
            for x in (qr, kr)
        ]
        unused = q if q.dtype == torch.float32 else q.new_empty(q.shape[1], dtype=torch.float32)
        self.schemes = tuple(
            unused if x is None else x for x in (table, qr, kr, *ends, slopes, spans)
        )
        self.reach = unused if reach is None else reach
        self.rows = (q.shape[2], k.shape[2], offset or 0)
        self.offset, self.spans = offset, spans
        self.flags = {
            "HAS_QR": qr is not None, "HAS_KR": kr is not None, "HAS_LINEAR": slopes is not None,
            "HAS_SPANS": spans is not None, "BATCHED": int(not packed), "CAUSAL": causal,
            "DROPOUT": p > 0,
        }  # fmt: skip
        self.parts = [
            name
            for name, part in (
                ("linear", slopes is not None),
                ("query", qr is not None), ("key", kr is not None), ("tail", q2 is not None),
                ("dropout", p > 0),
            )
            if part
        ]  # fmt: skip
        size, value = q.shape[3], v.shape[3]
        padded = [_width(x) for x in (q, v)]
        self.sizes = {
            "SIZE": size, "VSIZE": value, "TAIL": 0 if q2 is None else q2.shape[3],
            "BD": padded[0], "BV": padded[1], "BT": _width(self.q2),
            "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        }  # fmt: skip
        self.padded = size_of_tiles(max(padded), 0 if q2 is None else self.sizes["BT"])

    def fresh(self, x: Tensor, value: float = 0.0) -> Tensor:
        """x, new, filled where the kernels do not write all of it."""
        return x.fill_(value) if self.packed else x

    def tiles(self, x: Tensor, rows: int) -> TensorDescriptor:
        """x for the copy engine, in tiles of so many rows and all (padded) features."""
        unit = 16 // x.element_size()
        steps = [s if n > 1 else unit for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True)]
        tile = [1] * (x.ndim - 2) + [rows, _width(x)]
        return TensorDescriptor(x, list(x.shape), [*steps, 1], tile)

    def tail(self, x: Tensor, rows: int) -> TensorDescriptor | Tensor:
        """As `tiles`, of q2 or waves; as it is where no kernel reads it."""
        return self.tiles(x, rows) if self.sizes["TAIL"] else x

    def blocks(self, kernel: str) -> Blocks:
        """The kernel's configuration for these sizes, schemes and device."""
        return blocks(
            kernel, self.padded, self.q.element_size(), capability(self.q.device), self.parts
        )


def _dtable(call: _Call, dout: Tensor, lse: Tensor, delta: Tensor, lefts: Tensor) -> Tensor:
    """(H, 2 * limit + 1): dS summed at each clipped distance."""
    use = call.blocks("backward_table")
    heads, inside = call.q.shape[1], call.limit - 1
    tiles = cdiv(use.queries + (inside if call.causal else 2 * inside), use.keys)
    blocks = cdiv(call.max_queries, use.queries)
    parts = max(1, min(_TABLE_PARTS, call.sequences * blocks // 8))
    margin = use.queries + use.keys
    fold = lse.new_zeros(heads, parts, use.queries, 2 * inside + margin + use.queries)
    sizes = {name: call.sizes[name] for name in ("TAIL", "BD", "BV", "BT", "PRECISION")}
    backward_table[(tiles, heads, parts)](
        call.tiles(call.q, use.queries), call.tiles(call.k, use.keys), call.tiles(call.v, use.keys),
        call.tail(call.q2, use.queries), call.tail(call.waves, use.keys), call.tiles(dout, use.queries),
        fold, lse, delta, *call.schemes, *call.rows, blocks, call.sequences, heads, call.group,
        *call.clip, call.scale2, *call.dropout, **call.flags, **sizes, **use.tile, **use.options,
    )  # fmt: skip
    near = fold.sum((1, 2))[:, margin:]
    dtable = lse.new_empty(heads, 2 * call.limit + 1)
    finish_table[(heads,)](
        near, lefts, dtable, call.schemes[-1], *call.rows, lefts.shape[-1], call.sequences, call.limit,
        near.stride(0), HAS_SPANS=call.flags["HAS_SPANS"], CAUSAL=call.causal, MANY=_AT_A_TIME,
    )  # fmt: skip
    return dtable
