"""A Transformer whose decoder merges self- and cross-attention into one sublayer (Zhang et al. 2019,
"Improving Deep Transformer with Depth-Scaled Initialization and Merged Attention", section 5).

Shapes: B sentences, K hypotheses of each, N = B·K, S source and T target positions, C model size, H heads, D head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mtplug
from mtplug.architectures.layers import FeedForward, LayersConfig, PrefixCache, Sublayer, Where
from mtplug.architectures.transformer import (
    SourceCache,
    Transformer,
    TransformerConfig,
    TransformerState,
)
from mtplug.nn.attention import MultiHeadAttention, for_each_query_head
from mtplug.registry import choice


@dataclass
class MergedTransformerConfig(TransformerConfig):
    """Transformer whose decoder sums attention over its prefix and over the source in one sublayer."""

    prefix: str = choice("attention", "average")
    """how the decoder sums up its prefix: softmax attention with the queries that look at the
    source, or the plain average of the values (the paper's, which ignores positions there)"""


class MergedAttention(MultiHeadAttention):
    """Heads over the prefix and over the source, summed before the common output projection.

    Queries are common too; keys and values of the prefix are `own_k` and `own_v`.
    """

    def __init__(self, config: MergedTransformerConfig, backend: Any):
        how = (config.attention_dropout, backend, config.kv_heads, config.head_dim)
        super().__init__(config.dim, config.heads, *how)
        self.averages = config.prefix == "average"
        size = self.v.out_features
        self.own_v = nn.Linear(config.dim, size)
        linears = [self.own_v]
        if not self.averages:
            self.own_k = nn.Linear(config.dim, size)
            linears.append(self.own_k)
        for linear in linears:
            nn.init.xavier_uniform_(linear.weight, gain=1 / math.sqrt(2))
            nn.init.zeros_(linear.bias)

    def own_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the prefix, (B, H, T, D) each; without keys, the values twice."""
        v = self.split(self.own_v(x))
        return (v if self.averages else self.split(self.own_k(x))), v

    def forward(  # type: ignore[override]
        self, x: Tensor, memory: Tensor, own: Where, cross: Where
    ) -> Tensor:
        """(B, T, C) over itself and over `memory` (B, S, C)."""
        q, dropout_p = self.queries(x), self.dropout if self.training else 0.0
        own_k, own_v = self.own_keys_values(x)
        if self.averages:
            summed = for_each_query_head(q, averages(own_v, own.get("cu_seqlens")))
        else:
            summed = self.backend(q, own_k, own_v, causal=True, dropout_p=dropout_p, **own)
        k, v = self.keys_values(memory)
        return self.join(summed + self.backend(q, k, v, dropout_p=dropout_p, **cross))

    def step(
        self, x_BKC: Tensor, own: PrefixCache, source: SourceCache, lengths: Tensor | None
    ) -> Tensor:
        """One position, which is added to `own`."""
        q_BKC = self.q(x_BKC)
        own.append(*self.own_keys_values(own.rows(x_BKC)))
        if isinstance(own, AverageCache):
            summed = for_each_query_head(self.split(q_BKC), own.mean())
        else:
            where = own.where()
            backend = where.pop("backend", self.backend)
            summed = backend(self.split(own.rows(q_BKC)), *own.own(), **where)
        # The hypotheses of a sentence are the queries of one row, as in other decoders.
        found = self.backend(self.split(q_BKC), *source, key_lengths=lengths)
        summed = summed.transpose(1, 2).reshape(q_BKC.shape)
        return self.out(summed + found.transpose(1, 2).flatten(2))


def averages(v: Tensor, cu_seqlens: tuple[Tensor, Tensor] | None) -> Tensor:
    """(B, H, T, D) to the mean of each position and those before it, in its own sentence."""
    positions = torch.arange(v.shape[2], device=v.device)
    total = v.double().cumsum(2)  # of a packed row one sum is taken from another: leave it digits
    if cu_seqlens is not None:
        starts = cu_seqlens[0]
        first = torch.repeat_interleave(starts[:-1], starts.diff())
        before = torch.nn.functional.pad(total, (0, 0, 1, 0)).index_select(2, first)
        total, positions = total - before, positions - first
    return (total / (positions + 1)[:, None]).to(v.dtype)


class AverageCache(PrefixCache):
    """The sum of the values so far, one position long."""

    def append(self, k: Tensor, v: Tensor) -> None:
        self.like = v.dtype
        # a sum of many, which bf16 would soon stop counting
        v = v.to(torch.promote_types(v.dtype, torch.float32))
        self.k = self.v = v if self.v is None else self.v + v
        self.columns += 1

    def mean(self) -> Tensor:
        """(N, H, 1, D)"""
        assert self.v is not None
        return (self.v / self.columns).to(self.like)

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        if self.v is not None:
            self.v = self.v.index_select(0, parents.reshape(-1))


class AverageState(TransformerState):
    def cache(self, where: Where) -> PrefixCache:
        return AverageCache(where)


class MergedDecoderLayer(nn.Module):
    def __init__(self, config: LayersConfig, backend: Any):
        super().__init__()
        assert isinstance(config, MergedTransformerConfig)
        self.cross = Sublayer(config, MergedAttention(config, backend))
        self.ffn = Sublayer(config, FeedForward(config))

    def forward(self, x_BTC: Tensor, memory_BSC: Tensor, own: Where, cross: Where) -> Tensor:
        return self.ffn(self.cross(x_BTC, memory_BSC, own, cross))

    def step(
        self, x_BKC: Tensor, own: PrefixCache, source: SourceCache, lengths: Tensor | None
    ) -> Tensor:
        """One position of B·K hypotheses, which is added to `own`."""
        body: MergedAttention = self.cross.body  # type: ignore[assignment]
        change = body.step(self.cross.enter(x_BKC), own, source, lengths)
        return self.ffn(self.cross.leave(x_BKC, change))


class MergedTransformer(Transformer):
    """Transformer with merged attention in its decoder."""

    config: MergedTransformerConfig
    decoder_layer = MergedDecoderLayer

    def state(self, *args: Any) -> TransformerState:
        return (AverageState if self.config.prefix == "average" else TransformerState)(*args)

    def roles(self) -> dict[str, str]:
        found = super().roles()
        for n in range(self.config.decoder_layers):
            at = f"decoder.{n}.cross.body"
            found[f"{at}.own_v"] = "decoder.self.v"
            if self.config.prefix == "attention":
                found[f"{at}.own_k"] = "decoder.self.k"
        return found


@mtplug.hookimpl
def register_architectures(register):
    register("merged_transformer", MergedTransformer, MergedTransformerConfig)
