"""A decoder-only Transformer: a language model (Radford et al. 2018).

Shapes: B sentences, K hypotheses of each, T positions, C model size, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import mtplug
from mtplug.architectures.base import DecodingState
from mtplug.architectures.embeddings import embedding, output_layer
from mtplug.architectures.layers import (
    EncoderLayer,
    LayeredModel,
    LayersConfig,
    PrefixState,
    Where,
    attend_to_prefix,
    last_norm,
    roles_of_layer,
)
from mtplug.architectures.transformer import cumulative
from mtplug.nn.positions import PositionEncoding, schemes_of
from mtplug.registry import require_range


@dataclass
class TransformerLMConfig(LayersConfig):
    """Decoder-only Transformer, a language model of the target side."""

    layers: int = 6
    tie_embeddings: bool = True
    """the output layer has the weights of the embedding"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 1, math.inf, "layers")


class TransformerLM(LayeredModel):
    """Layers of causal self-attention; whatever the source is, it is not looked at.

    Args:
        config: settings.
        task: gives the size of the vocabulary.
    """

    takes_packed = True
    reads_source = False

    def __init__(self, config: TransformerLMConfig, task: Any):
        super().__init__(config)
        size = len(task.target_tokenizer)
        self.embedding = embedding(size, config.dim)
        tied = self.embedding if config.tie_embeddings else None
        self.output = output_layer(size, config.dim, tied)
        self.position: PositionEncoding = config.position.build(
            config.stack(config.layers, causal=True)
        )
        self.layers = self.stack(EncoderLayer, config.layers)
        self.norm = last_norm(config)

    def attentions(self) -> dict[str, tuple[Any, ...]]:
        return {"decoder": schemes_of(self.position, 0)}

    def forward(
        self,
        source_tokens: Tensor,
        source_lengths: Tensor,
        prev_output_tokens: Tensor,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        starts = None if target_lengths is None else cumulative(target_lengths)
        return self.features(prev_output_tokens, starts)

    def features(self, tokens: Tensor, starts: Tensor | None) -> Tensor:
        """(B, T) tokens to (B, T, C), or (1, all) of texts one after another to (1, all, C).

        Args:
            tokens: of any batch.
            starts: of packed texts, as `cumulative` gives them.
        """
        rows: Where = {"causal": True}
        if starts is not None:
            rows["cu_seqlens"] = (starts, starts)
        x = self.embed(self.embedding, self.position, tokens, 0, starts)
        for n, layer in enumerate(self.layers):
            x = self._run(layer, x, {**rows, **self.where(self.position, n)})
        return self.norm(x)

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> PrefixState:
        wheres = [self.where(self.position, n) for n in range(len(self.layers))]
        return PrefixState(wheres, source_tokens.device)

    def extend(self, state: DecodingState, tokens: Tensor) -> Tensor:
        assert isinstance(state, PrefixState)
        x_BKC = self.embed_next(self.embedding, self.position, tokens, state)
        layers: Any = self.layers
        for layer, cache in zip(layers, state.layers, strict=True):
            x_BKC = layer.ffn(attend_to_prefix(layer.attention, x_BKC, cache))
        return self.norm(x_BKC)

    def roles(self) -> dict[str, str]:
        found = {"embedding": "decoder.embedding", "output": "output"}
        for n, layer in enumerate(self.layers):
            found |= roles_of_layer(layer, f"layers.{n}", "decoder")
        if self.config.norm == "pre":
            found["norm"] = "decoder.norm"
        return found


@mtplug.hookimpl
def register_architectures(register):
    register("transformer_lm", TransformerLM, TransformerLMConfig)
