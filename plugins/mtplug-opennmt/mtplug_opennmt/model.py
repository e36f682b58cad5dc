"""Architecture `opennmt`: what OpenNMT-py's Transformer has that mtplug's does not.

The encoder does not see the source's `</s>`. Decoding begins with an embedding of its own, that of `<s>`. Logits have a
bias. Embeddings are multiplied by the root of the model size only where positions are added to them. Vectors of relative
positions (Shaw et al. 2018) are added to the values, too.

Shapes: B sentences, H heads, I queries, J keys, D head size, S source and T target positions, C model size, R clipped
distances.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from mtplug_kernels.positions import QueryTable
from torch import Tensor, nn

from mtplug.architectures.layers import PrefixCache, Where
from mtplug.architectures.transformer import SourceCache, TransformerState
from mtplug.data.tokenizers import EOS
from mtplug.exporting.marian_model import Marian, MarianConfig
from mtplug.nn.attention import Attend, AttentionCall, for_each_query_head
from mtplug.nn.backends import attention_mask
from mtplug.nn.dropout import dropout
from mtplug.nn.plain import masked, simplify
from mtplug.nn.positions import PositionEncoding
from mtplug.registry import choice, require_range


@dataclass
class OpenNmtConfig(MarianConfig):
    """Transformer as OpenNMT-py and Eole have it."""

    norm: str = choice("pre", "post")
    """layer normalisation before each sublayer, as OpenNMT-py has it, or after each residual sum"""
    norm_epsilon: float = 1e-6
    """what layer normalisation adds to the variance"""
    scale_embeddings: bool = True
    """multiply embeddings by the square root of `dim`; OpenNMT-py does so with `position_encoding`"""
    relative_values: float = 0.0
    """with position=shaw: add the vectors of distances, times this, to the values as well as to the keys"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_epsilon <= 0:
            raise ValueError(f"norm_epsilon must be positive, not {self.norm_epsilon}")
        require_range(self, 0, math.inf, "relative_values")
        if self.relative_values and self.position.name != "shaw":
            raise ValueError("relative_values needs position=shaw")


class OpenNmt(Marian):
    config: OpenNmtConfig
    takes_packed = False
    ctranslate2 = True
    source_end = False

    def __init__(self, config: OpenNmtConfig, task: Any):
        super().__init__(config, task)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.eps = config.norm_epsilon
        if config.relative_values:
            backend = WithValues(config.attention.backend, config.relative_values)
            for layer in (*self.encoder, *self.decoder):
                layer.attention.body.backend = backend

    def embed(
        self, table: nn.Embedding, position: PositionEncoding, tokens: Tensor, start: int = 0,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if self.config.scale_embeddings:
            return super().embed(table, position, tokens, start, cu_seqlens)
        root = math.sqrt(self.config.dim)
        return super().embed(lambda ids: table(ids) / root, position, tokens, start, cu_seqlens)  # type: ignore[arg-type]

    def encode(self, source_tokens: Tensor, source_lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        return super().encode(source_tokens, _without_end(source_tokens, source_lengths))

    def cross_attention(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        lengths = _without_end(source_tokens, source_lengths)
        return super().cross_attention(source_tokens, lengths, prev_output_tokens)

    def state(self, *args: Any) -> TransformerState:
        return MovingState(*args) if self.config.relative_values else super().state(*args)


def _without_end(tokens: Tensor, lengths: Tensor) -> Tensor:
    """(B,) lengths without `</s>`, if it is still counted. An empty source keeps it: attention needs something to look at."""
    ends = tokens.gather(1, (lengths - 1)[:, None])[:, 0] == EOS
    return (lengths - ends.to(lengths.dtype)).clamp(min=1)


class WithValues(Attend):
    """Self-attention whose table of distances is added to the values, too.

    Args:
        name: of the backend for attention without such a table.
        factor: of the table where it is added to the values.
    """

    def __init__(self, name: str, factor: float):
        super().__init__(name)
        self.factor = factor

    def choose(self, call: AttentionCall) -> str:
        return "relative_values" if "QueryTable" in call.schemes else super().choose(call)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, position: tuple[Any, ...] = (), causal: bool = False,
        key_lengths: Tensor | None = None, query_offset: int = 0, scale: float | None = None,
        dropout_p: float = 0.0, **_: Any,
    ) -> Tensor:  # fmt: skip
        (table,) = (scheme.table for scheme in position if isinstance(scheme, QueryTable))
        k, v = for_each_query_head(q, k), for_each_query_head(q, v)
        (queries, keys), width = (q.shape[2], k.shape[2]), table.shape[1]
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        q, k, bias = simplify(q, k, position, query_offset, scale)
        mask = attention_mask(queries, keys, causal, key_lengths, query_offset, q.device)
        bias = masked(bias, mask)
        scores = (q * scale) @ k.mT if bias is None else (q * scale) @ k.mT + bias
        weights = dropout(scores.softmax(-1, dtype=torch.float32), dropout_p, dropout_p > 0)
        weights = weights.to(v.dtype)
        i = torch.arange(query_offset, query_offset + queries, device=q.device)
        distance = i[:, None] - torch.arange(keys, device=q.device)
        places = distance.clamp(-(width // 2), width // 2) + width // 2
        # (B, H, I, R): what keys of each distance weigh together.
        of_distance = weights.new_zeros(*weights.shape[:3], width)
        of_distance.scatter_add_(-1, places.expand(weights.shape), weights)
        return weights @ v + of_distance @ (self.factor * table).to(v.dtype)


class MovingState(TransformerState):
    """Keys and values move with their hypotheses, on CPUs, too: columns that stay have no room for values of distances."""

    def __init__(self, sources: list[SourceCache], lengths: Tensor | None, wheres: Iterable[Where]):
        wheres = list(wheres)
        super().__init__(sources, lengths, wheres)
        self.ancestry = None
        self.layers = [PrefixCache(where) for where in wheres]
