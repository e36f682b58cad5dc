"""The torch operators ``mtplug_kernels::attend`` and its backward, which launch the kernels.

Being operators with fake implementations, they pass through torch.compile and checkpointing.

Shape legend: B batch, H query heads, G key heads, Q queries, K keys, D head size, V value size,
S sequences (B, unless packed), C = 2 * limit + 1 clipped distances.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from mtplug_kernels.philox import threshold
from mtplug_kernels.triton_kernels.backward import backward_keys, backward_queries, backward_table
from mtplug_kernels.triton_kernels.forward import forward
from mtplug_kernels.tuning import Blocks, blocks, capability

LOG2E = math.log2(math.e)
_PAD = 256  # at least BM + BN of every configuration


@torch.library.custom_op("mtplug_kernels::attend", mutates_args=())
def attend(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, qr: Tensor | None,
    kr: Tensor | None, slopes: Tensor | None, spans: Tensor, limit: int, packed: bool,
    causal: bool, scale: float, dropout_p: float, seed: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output (B, H, Q, V) and logsumexp (B, H, Q) float32 in units of log 2, +inf for empty rows.

    table (H, C) and slopes (H,) are in logits; qr (B, H, Q, C) and kr (B, H, K, C) in units of
    q.k. spans (S, 5) int32: first query, queries, first key, keys, position of the first query.
    """
    call = _Call(
        q, k, v, table, qr, kr, slopes, spans, limit, packed, causal, scale, dropout_p, seed
    )
    out = q.new_zeros(call.out_shape) if packed else q.new_empty(call.out_shape)
    lse = q.new_full(out.shape[:3], math.inf, dtype=torch.float32)
    if not out.numel() or not spans.numel():
        return out, lse
    use = call.blocks("forward")
    grid = (triton.cdiv(call.max_queries, use.queries), len(spans) * q.shape[1])
    forward[grid](
        call.q, call.k, call.v, out, lse, *call.schemes,
        *call.strides(call.q, call.k, call.v, out), *call.row_strides(lse),
        q.shape[1], call.group, limit, call.pad, call.scale2, *call.dropout,
        **call.flags, HAS_TABLE=table is not None, **call.sizes,
        BM=use.queries, BN=use.keys, num_warps=use.warps, num_stages=use.stages,
    )  # fmt: skip
    return out, lse


@attend.register_fake
def _(q, k, v, table, qr, kr, slopes, spans, limit, packed, causal, scale, dropout_p, seed):
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("mtplug_kernels::attend_backward", mutates_args=())
def attend_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    table: Tensor | None, qr: Tensor | None, kr: Tensor | None,
    slopes: Tensor | None, spans: Tensor, limit: int, packed: bool, causal: bool,
    scale: float, dropout_p: float, seed: int, need_table: bool, need_slopes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, table, qr, kr, slopes; empty tensors for what is absent."""
    call = _Call(
        q, k, v, table, qr, kr, slopes, spans, limit, packed, causal, scale, dropout_p, seed
    )
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.zeros_like(lse)
    need_left = not causal and (need_table or qr is not None)
    left = torch.zeros_like(lse) if need_left else lse
    dslope = torch.zeros_like(lse) if need_slopes else lse
    dqr, dkr = (
        torch.zeros_like(x, dtype=torch.float32) if x is not None else lse for x in (qr, kr)
    )
    nothing = q.new_empty(0)
    if q.numel() and k.numel() and spans.numel():
        has_table = {"HAS_TABLE": table is not None}
        use = call.blocks("backward_queries")
        grid = (triton.cdiv(call.max_queries, use.queries), len(spans) * q.shape[1])
        backward_queries[grid](
            call.q, call.k, call.v, out, dout, dq, lse, delta, left, dslope, *call.schemes,
            *call.strides(call.q, call.k, call.v, out, dout, dq), *call.row_strides(lse),
            q.shape[1], call.group, limit, call.pad, scale, call.scale2, *call.dropout,
            **call.flags, **has_table, NEED_LEFT=need_left, NEED_SLOPE=need_slopes, **call.sizes,
            BM=use.queries, BN=use.keys, num_warps=use.warps, num_stages=use.stages,
        )  # fmt: skip
        use = call.blocks("backward_keys")
        grid = (triton.cdiv(call.max_keys, use.keys), len(spans) * k.shape[1])
        backward_keys[grid](
            call.q, call.k, call.v, dout, dk, dv, dqr, dkr, lse, delta, *call.schemes,
            *call.strides(call.q, call.k, call.v, dout, dk, dv), *call.row_strides(lse),
            k.shape[1], call.group, limit, call.pad, scale, call.scale2, *call.dropout,
            **call.flags, **has_table, **call.sizes,
            BM=use.queries, BN=use.keys, num_warps=use.warps, num_stages=use.stages,
        )  # fmt: skip
    dtable = nothing
    if need_table:
        near = _near_table(call, dout, lse, delta)
        dtable = _with_far_columns(near, None if causal else left.sum((0, 2)))
    if qr is not None:
        dqr = (_with_far_columns(dqr[..., 1:-1], None if causal else left) * scale).to(qr.dtype)
    dslopes = dslope.sum((0, 2)) if need_slopes else nothing
    return (
        dq, dk, dv, dtable, nothing.clone() if qr is None else dqr,
        nothing.clone() if kr is None else (dkr * scale).to(kr.dtype),
        dslopes if need_slopes else nothing.clone(),
    )  # fmt: skip


@attend_backward.register_fake
def _(dout, q, k, v, out, lse, table, qr, kr, slopes, spans, limit, packed, causal, scale,
      dropout_p, seed, need_table, need_slopes):  # fmt: skip
    def like(x, wanted=True):
        return q.new_empty(0) if x is None or not wanted else x.new_empty(x.shape)

    return (
        like(q), like(k), like(v), like(table, need_table), like(qr), like(kr),
        like(slopes, need_slopes),
    )  # fmt: skip


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, table, qr, kr, slopes, spans, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, *output, table, qr, kr, slopes, spans)


def _backward(ctx, dout, _):
    need_table, need_slopes = ctx.needs_input_grad[3], ctx.needs_input_grad[6]
    saved = ctx.saved_tensors  # once: checkpointing refuses a second unpacking
    grads = attend_backward(dout, *saved, *ctx.rest, need_table, need_slopes)
    present = [x is not None for x in saved[5:9]]
    present[0], present[3] = need_table, need_slopes
    optional = [g if there else None for g, there in zip(grads[3:], present, strict=True)]
    return (*grads[:3], *optional, *[None] * 7)


attend.register_autograd(_backward, setup_context=_setup_context)


class _Call:
    """What the launches of one call share."""

    def __init__(
        self, q, k, v, table, qr, kr, slopes, spans, limit, packed, causal, scale, p, seed
    ):
        self.q, self.k, self.v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        self.spans, self.limit, self.packed, self.causal = spans, limit, packed, causal
        self.group = q.shape[1] // k.shape[1]
        self.out_shape = (*q.shape[:3], v.shape[3])
        # A packed batch's lengths are on the device: the grid needs the longest (one wait).
        longest = spans.max(0).values.tolist() if packed else (0, q.shape[2], 0, k.shape[2])
        self.max_queries, self.max_keys = longest[1], longest[3]
        self.scale2 = scale * LOG2E
        self.dropout = (seed, threshold(p), 1.0 / (1.0 - p))
        self.pad = limit + _PAD if table is not None else 0
        zero = torch.zeros(q.shape[1], dtype=torch.float32, device=q.device)
        if table is not None:
            # Over j - i, so that neighbouring keys are neighbours in memory.
            at = torch.arange(self.pad, -self.pad - 1, -1, device=q.device)
            table = (table.float()[:, at.clamp(-limit, limit) + limit] / scale).contiguous()
        qr, kr = (x if x is None else x.contiguous() for x in (qr, kr))
        self.product_strides = [
            n for x in (qr, kr) for n in ((0, 0) if x is None else x.stride()[:2])
        ]
        present = [zero if x is None else x for x in (table, qr, kr)]
        self.schemes = (*present, zero if slopes is None else slopes.float() / scale, spans)
        self.flags = {
            "HAS_QR": qr is not None, "HAS_KR": kr is not None, "HAS_LINEAR": slopes is not None,
            "CAUSAL": causal, "DROPOUT": p > 0,
        }  # fmt: skip
        size, value = q.shape[3], v.shape[3]
        padded = [max(16, triton.next_power_of_2(n)) for n in (size, value)]
        self.padded = max(padded)
        self.sizes = {
            "SIZE": size, "VSIZE": value, "BD": padded[0], "BV": padded[1],
            "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        }  # fmt: skip

    def blocks(self, kernel: str) -> Blocks:
        """The kernel's configuration for these sizes, schemes and device."""
        products = self.flags["HAS_QR"] or self.flags["HAS_KR"]
        return blocks(
            kernel, self.padded, self.q.element_size(), capability(self.q.device), products,
            self.flags["DROPOUT"], self.flags["HAS_LINEAR"],
        )  # fmt: skip

    def strides(self, *tensors: Tensor) -> list[int]:
        """(batch, head, row) strides of each; a packed batch's sequences lie in one row of B."""
        return [n for x in tensors for n in (0 if self.packed else x.stride(0), *x.stride()[1:3])]

    def row_strides(self, lse: Tensor) -> list[int]:
        """(batch, head) strides of the per-row vectors and of the two products."""
        rows = [*lse.stride()[:2], *self.product_strides]
        return [0 if self.packed and n % 2 == 0 else stride for n, stride in enumerate(rows)]


def _near_table(call: _Call, dout: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """(H, 2 * limit - 1): dS summed at each distance inside the clip, by backward_table."""
    use = call.blocks("backward_table")
    side, heads = use.queries, call.q.shape[1]
    reach = triton.cdiv(call.limit - 1, side)
    tiles = reach + 1 if call.causal else 2 * reach + 1
    rows = triton.cdiv(call.max_queries, side)
    parts = max(1, min(16, len(call.spans) * rows // 8))
    fold = lse.new_zeros(heads, tiles, parts, side, 2 * side)
    if call.max_queries and call.k.numel() and len(call.spans):
        backward_table[(tiles, heads, parts)](
            call.q, call.k, call.v, dout, fold, lse, delta, *call.schemes,
            *call.strides(call.q, call.k, call.v, dout), *call.row_strides(lse),
            len(call.spans), heads, call.group, call.limit, call.pad, -reach, rows,
            call.scale2, *call.dropout, **call.flags, **call.sizes,
            B=side, num_warps=use.warps, num_stages=use.stages,
        )  # fmt: skip
    by_tile = fold.sum((2, 3))  # (H, tiles, 2 * side): key minus query from (tile - 1) * side
    first, second = by_tile.split(side, 2)
    pad = torch.zeros_like(first[:, :1])
    diagonals = (torch.cat([first, pad], 1) + torch.cat([pad, second], 1)).flatten(1)
    # Column 0 of diagonals is the distance j - i = -(reach + 1) * side.
    start = (reach + 1) * side - (call.limit - 1)
    near = diagonals[:, start : start + 2 * call.limit - 1]
    near = torch.nn.functional.pad(near, (0, 2 * call.limit - 1 - near.shape[1]))
    return near.flip(1)


def _with_far_columns(near: Tensor, left: Tensor | None) -> Tensor:
    """Add both far columns: a row of dS sums to zero. Without ``left``, causally, right is zero."""
    rest = near.sum(-1)
    left, right = (-rest, torch.zeros_like(rest)) if left is None else (left, -(rest + left))
    return torch.cat([right[..., None], near, left[..., None]], -1)
