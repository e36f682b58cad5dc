"""Multi-head attention and its backends: the kind `attention_backends`.

Shapes: B batch, H heads, I queries, J keys, D head size, C model size.
A backend is called as

    backend(q, k, v, *, causal=False, key_lengths=None, query_offset=0, dropout_p=0.0)

with q (B, H, I, D), k and v (B, H, J, D), `key_lengths` (B,) int64 true numbers of keys, and query i
standing at position `query_offset + i`; it returns (B, H, I, D).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtplug
from mtplug.plugins import host


def attention_mask(
    q_len: int, k_len: int, causal: bool, key_lengths: Tensor | None, offset: int, device: Any
) -> Tensor | None:
    """(B or 1, 1, I, J) bool, True where a query may look; None where all may."""
    mask = None
    if causal and (q_len > 1 or offset + 1 < k_len):
        positions_I = torch.arange(offset, offset + q_len, device=device)
        mask = torch.arange(k_len, device=device)[None, :] <= positions_I[:, None]
        mask = mask[None, None]
    if key_lengths is not None:
        real = torch.arange(k_len, device=device)[None, :] < key_lengths[:, None]
        mask = real[:, None, None, :] if mask is None else mask & real[:, None, None, :]
    return mask


class ReferenceAttention:
    """Attention as its definition reads (Vaswani et al. 2017, section 3.2.1), in any precision."""

    def __init__(self, config: Any = None):
        pass

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = False,
        key_lengths: Tensor | None = None,
        query_offset: int = 0,
        dropout_p: float = 0.0,
    ) -> Tensor:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        mask = attention_mask(q.shape[2], k.shape[2], causal, key_lengths, query_offset, q.device)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return F.dropout(scores.softmax(-1), dropout_p) @ v


class SdpaAttention:
    """torch's scaled_dot_product_attention, which picks a fused kernel where it has one."""

    def __init__(self, config: Any = None):
        pass

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = False,
        key_lengths: Tensor | None = None,
        query_offset: int = 0,
        dropout_p: float = 0.0,
    ) -> Tensor:
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            # torch's bf16 attention on CPUs is slower than fp32, its backward tenfold (2.13)
            q, k, v = q.float(), k.float(), v.float()
        with torch.autocast(q.device.type, enabled=False):
            return self._attend(q, k, v, causal, key_lengths, query_offset, dropout_p)

    @staticmethod
    def _attend(q, k, v, causal, key_lengths, query_offset, dropout_p) -> Tensor:
        square = query_offset == 0 and q.shape[2] == k.shape[2]
        if causal and square and key_lengths is None:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)
        mask = attention_mask(q.shape[2], k.shape[2], causal, key_lengths, query_offset, q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)


@mtplug.hookimpl
def register_attention_backends(register):
    register("reference", ReferenceAttention)
    register("sdpa", SdpaAttention)


AUTO_ORDER = ("sdpa", "reference")
"""What `auto` tries, first to last."""


def attention_backend(name: str) -> Any:
    """The backend of that name, or for `auto` the first of `AUTO_ORDER` that is not blocked."""
    if name == "auto":
        known = host().names("attention_backends")
        name = next((n for n in AUTO_ORDER if n in known), AUTO_ORDER[-1])
    component = host().component("attention_backends", name)
    return component.factory(component.config())


class MultiHeadAttention(nn.Module):
    """Projections around an attention backend.

    Args:
        dim: model size C.
        heads: H; must divide `dim`.
        dropout: on the attention weights.
        backend: see this module's docstring.

    Raises:
        ValueError: `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, heads: int, dropout: float, backend: Any):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a model size of {dim}")
        self.heads, self.dropout, self.backend = heads, dropout, backend
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        # The scale of a fused query-key-value projection, as fairseq has it: training at high
        # learning rates depends on it.
        for linear in (self.q, self.k, self.v):
            nn.init.xavier_uniform_(linear.weight, gain=1 / math.sqrt(2))
        nn.init.xavier_uniform_(self.out.weight)
        for linear in (self.q, self.k, self.v, self.out):
            nn.init.zeros_(linear.bias)

    def split(self, x: Tensor) -> Tensor:
        """(B, L, C) to (B, H, L, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `attend` needs of the attended side, (B, H, J, D) each; to be kept when decoding."""
        return self.split(self.k(x)), self.split(self.v(x))

    def attend(self, x: Tensor, k: Tensor, v: Tensor, **where: Any) -> Tensor:
        """Queries from `x` (B, I, C) over given keys and values."""
        dropout_p = self.dropout if self.training else 0.0
        out = self.backend(self.split(self.q(x)), k, v, dropout_p=dropout_p, **where)
        return self.out(out.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, attended: Tensor | None = None, **where: Any) -> Tensor:
        """(B, I, C) attending to `attended` (B, J, C), by default to itself."""
        k, v = self.keys_values(x if attended is None else attended)
        return self.attend(x, k, v, **where)
