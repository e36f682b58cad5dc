"""The attention backends `reference`, `sdpa`, `flex` and `triton`; `auto` ranks them.

On a GPU `auto` takes sdpa where no bias has to be materialised (no scheme, rotation or Transformer-XL, no
packed sentences), else triton, flex, sdpa, reference, the first that can. On a CPU: sdpa, reference.

Shapes: B batch, H heads, I queries, J keys, D head size, N packed sentences.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mtplug
from mtplug.nn.attention import AttentionBackend, AttentionCall, for_each_query_head
from mtplug.nn.plain import masked, simplify, weigh

FEW = 16  # queries, as of the hypotheses of a sentence while decoding
SHORT = (
    64  # queries with a backward pass, which takes twice as long in torch's own attention in fp32
)


class ReferenceAttention(AttentionBackend):
    """Attention as its definition reads, in any precision: the truth the others are held to."""

    takes_grouped = True

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.missing = _missing("mtplug_kernels")

    def why_not(self, call: AttentionCall) -> str:
        return self.missing

    def rank(self, call: AttentionCall) -> int:
        return 1

    def __call__(self, q, k, v, **where: Any) -> Any:
        from mtplug_kernels import attention

        return attention(q, k, v, backend="reference", **where)


class SdpaAttention(AttentionBackend):
    """torch's scaled_dot_product_attention; relative biases are materialised, memory I·J."""

    takes_grouped = True

    def rank(self, call: AttentionCall) -> int:
        dense = bool(call.schemes - {"Rotary", "TransformerXL"}) or call.packed
        return 2 if dense or call.device != "cuda" else 5

    def __call__(
        self, q, k, v, *, position=(), causal=False, key_lengths=None, cu_seqlens=None,
        query_offset=0, scale=None, dropout_p=0.0,
    ) -> Tensor:  # fmt: skip
        dtype = q.dtype
        grouped = k.shape[1] < q.shape[1]
        if q.device.type == "cpu" and (dtype == torch.bfloat16 or grouped):
            few = SHORT if torch.is_grad_enabled() else FEW
            if q.shape[2] <= few and cu_seqlens is None and not dropout_p:
                scale = q.shape[-1] ** -0.5 if scale is None else scale
                q, k, bias = simplify(q, k, position, query_offset, scale)
                mask = attention_mask(
                    q.shape[2], k.shape[2], causal, key_lengths, query_offset, q.device
                )
                if mask is None:
                    return weigh(q, k, v, bias, scale)
                blind = ~mask.any(
                    -1, keepdim=True
                )  # rows that see no key: their softmax is nothing
                return weigh(q, k, v, masked(bias, mask | blind), scale).masked_fill(blind, 0.0)
            if dtype == torch.bfloat16:
                # torch's bf16 attention on CPUs is slower than fp32, its backward tenfold (2.13)
                q, k, v = q.float(), k.float(), v.float()
        with torch.autocast(q.device.type, enabled=False):
            rest = (position, causal, query_offset, scale, dropout_p)
            if cu_seqlens is None:
                return self._attend(q, k, v, key_lengths, *rest).to(dtype)
            cu_q, cu_k = cu_seqlens
            padded = unpack(q, cu_q), unpack(k, cu_k), unpack(v, cu_k)
            return pack(self._attend(*padded, cu_k.diff(), *rest), cu_q).to(dtype)

    @staticmethod
    def _attend(q, k, v, key_lengths, position, causal, offset, scale, dropout_p) -> Tensor:
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        q, k, bias = simplify(q, k, position, offset, scale)
        square = offset == 0 and q.shape[2] == k.shape[2]
        grouped = k.shape[1] < q.shape[1]
        v = v if grouped else for_each_query_head(q, v)  # of k, a scheme may want all heads
        options: Any = {"dropout_p": dropout_p, "scale": scale, "enable_gqa": grouped}
        if bias is None and causal and square and key_lengths is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
        mask = attention_mask(q.shape[2], k.shape[2], causal, key_lengths, offset, q.device)
        mask = mask if bias is None else masked(bias, mask)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)


class FlexAttention(AttentionBackend):
    """torch's FlexAttention; a scheme is a `score_mod` over its table."""

    def why_not(self, call: AttentionCall) -> str:
        if call.device not in ("cpu", "cuda"):
            return f"FlexAttention does not run on {call.device}"
        if call.device == "cpu" and call.gradient:
            return "FlexAttention has no backward pass on CPUs"
        return "FlexAttention has no dropout; set attention_dropout=0" if call.dropout else ""

    def rank(self, call: AttentionCall) -> int:
        return 3 if call.device == "cuda" else 0

    def __call__(
        self, q, k, v, *, position=(), causal=False, key_lengths=None, cu_seqlens=None,
        query_offset=0, scale=None, dropout_p=0.0,
    ) -> Tensor:  # fmt: skip
        rest = (position, causal, query_offset, scale)
        if cu_seqlens is None:
            return self._attend(q, k, v, key_lengths, *rest)
        cu_q, cu_k = cu_seqlens
        padded = unpack(q, cu_q), unpack(k, cu_k), unpack(v, cu_k)
        return pack(self._attend(*padded, cu_k.diff(), *rest), cu_q)

    @staticmethod
    def _attend(q, k, v, key_lengths, position, causal, offset, scale) -> Tensor:
        from torch.nn.attention.flex_attention import create_block_mask

        if not (q.numel() and k.numel()):  # for which it has no blocks
            return torch.zeros_like(q)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        mask = modify = None
        if position:
            from mtplug.nn.schemes import score_modifier

            q, k, modify = score_modifier(q, k, position, offset, scale)
        if causal or key_lengths is not None:
            lengths = key_lengths
            if lengths is None:
                lengths = torch.full((len(q),), k.shape[2], device=q.device)

            def visible(b, h, i, j):
                seen = j < lengths[b]
                return seen & (j <= i + offset) if causal else seen

            mask = create_block_mask(
                visible, len(q), None, q.shape[2], k.shape[2], device=q.device.type
            )
        run = _flex(compiled=q.is_cuda)
        return run(q, k, v, score_mod=modify, block_mask=mask, scale=scale)


class TritonAttention(AttentionBackend):
    """The kernels of `mtplug_kernels`: every scheme in memory I + J, deterministic."""

    takes_grouped = True

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.missing = _missing("mtplug_kernels", "triton")

    def why_not(self, call: AttentionCall) -> str:
        if self.missing:
            return self.missing
        if call.device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return f"Triton needs a GPU, the model is on {call.device}"
        return ""

    def rank(self, call: AttentionCall) -> int:
        return 4 if call.device == "cuda" else 0

    def __call__(self, q, k, v, **where: Any) -> Any:
        from mtplug_kernels import attention

        return attention(q, k, v, backend="triton", **where)


def _missing(*packages: str) -> str:
    """Which is not installed, asked once: torch.compile cannot look."""
    names = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{names[0]} is not installed" if names else ""


def attention_mask(
    q_len: int, k_len: int, causal: bool, key_lengths: Tensor | None, offset: int, device: Any
) -> Tensor | None:
    """(B or 1, 1, I, J) bool, True where a query may look; None where all may."""
    mask = None
    if causal and (q_len > 1 or offset + 1 < k_len):
        mask = (_distances(q_len, k_len, offset, device) >= 0)[:, None]
    if key_lengths is not None:
        real = torch.arange(k_len, device=device)[None, :] < key_lengths[:, None]
        mask = real[:, None, None, :] if mask is None else mask & real[:, None, None, :]
    return mask


def _distances(q_len: int, k_len: int, offset: int, device: Any) -> Tensor:
    """(1, I, J): i - j."""
    i = torch.arange(offset, offset + q_len, device=device)
    return (i[:, None] - torch.arange(k_len, device=device))[None]


@functools.cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    if not compiled:
        return flex_attention
    run = torch.compile(flex_attention, dynamic=False)
    # After eight shapes torch compiles no more, and attends by a function that holds N² scores.
    limits: dict[str, Any] = {"recompile_limit": 2**20, "accumulated_recompile_limit": 2**20}

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_compiling():  # a whole model, this with it
            return flex_attention(*args, **kwargs)
        with torch._dynamo.config.patch(**limits):
            return run(*args, **kwargs)

    return attend


def unpack(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """(1, H, N sentences one after another, D) to (N, H, longest, D), zeros beyond each end."""
    row, column, longest = _places(cu_seqlens, x.shape[2])
    out = x.new_zeros(len(cu_seqlens) - 1, longest, x.shape[1], x.shape[3])
    return out.index_put((row, column), x[0].transpose(0, 1)).transpose(1, 2)


def pack(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The inverse of `unpack`."""
    row, column, _ = _places(cu_seqlens, int(cu_seqlens[-1]))
    return x.transpose(1, 2)[row, column].transpose(0, 1)[None]


def _places(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor, int]:
    lengths = cu_seqlens.diff()
    row = torch.repeat_interleave(
        torch.arange(len(lengths), device=cu_seqlens.device), lengths, output_size=total
    )
    column = torch.arange(total, device=cu_seqlens.device) - cu_seqlens[row]
    return row, column, int(lengths.max()) if len(lengths) else 0


@mtplug.hookimpl
def register_attention_backends(register):
    register("reference", ReferenceAttention)
    register("sdpa", SdpaAttention)
    register("flex", FlexAttention)
    register("triton", TritonAttention)
