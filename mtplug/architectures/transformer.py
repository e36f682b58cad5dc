"""The Transformer encoder-decoder (Vaswani et al. 2017), post- or pre-norm.

Shapes: B sentences, K hypotheses of each, S source and T target positions, C model size, F inner size
of feed-forward layers, H heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mtplug
from mtplug.architectures.base import DecodingState
from mtplug.architectures.embeddings import tables
from mtplug.architectures.layers import (
    EncoderLayer,
    FeedForward,
    LayeredModel,
    LayersConfig,
    PrefixCache,
    PrefixState,
    Sublayer,
    Where,
    attend_to_prefix,
    attention_of,
    for_products,
    last_norm,
    roles_of_layer,
)
from mtplug.nn.attention import MultiHeadAttention, for_each_query_head
from mtplug.nn.own import with_own
from mtplug.nn.positions import PositionEncoding, schemes_of
from mtplug.registry import choice, require_range


@dataclass
class TransformerConfig(LayersConfig):
    """Encoder-decoder Transformer; the defaults are the paper's base model."""

    encoder_layers: int = 6
    decoder_layers: int = 6
    tie_embeddings: str = choice("all", "decoder", "none")
    """all: source, target and output share one table (needs a joint vocabulary)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 1, math.inf, "encoder_layers", "decoder_layers")


class DecoderLayer(nn.Module):
    def __init__(self, config: LayersConfig, backend: Any):
        super().__init__()
        self.attention = Sublayer(config, attention_of(config, backend))
        self.cross = Sublayer(config, attention_of(config, backend))
        self.ffn = Sublayer(config, FeedForward(config))

    def forward(self, x_BTC: Tensor, memory_BSC: Tensor, own: Where, cross: Where) -> Tensor:
        x_BTC = self.attention(x_BTC, causal=True, **own)
        return self.ffn(self.cross(x_BTC, memory_BSC, **cross))

    def step(
        self, x_BKC: Tensor, own: PrefixCache, source: SourceCache, lengths: Tensor | None
    ) -> Tensor:
        """One position of B·K hypotheses, which is added to `own`."""
        x_BKC = attend_to_prefix(self.attention, x_BKC, own)
        # All hypotheses of a sentence look at the same keys: they are the queries of one row.
        cross: MultiHeadAttention = self.cross.body  # type: ignore[assignment]
        change = cross.attend(self.cross.enter(x_BKC), *source, key_lengths=lengths)
        return self.ffn(self.cross.leave(x_BKC, change))


SourceCache = tuple[Tensor, Tensor]  # keys and values of the source in one layer, (B, G, S, D)


class TransformerState(PrefixState):
    """And of the source.

    Args:
        sources: of each layer.
        lengths: (B,) of the sources, if some are shorter than others.
        wheres: as of `PrefixState`.
    """

    def __init__(self, sources: list[SourceCache], lengths: Tensor | None, wheres: Iterable[Where]):
        self.sources, self.lengths = sources, lengths
        super().__init__(wheres, sources[0][0].device)

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        super().reorder(sentences, parents)
        if len(sentences) == len(self.sources[0][0]):
            return
        self.sources = [
            (k.index_select(0, sentences), v.index_select(0, sentences)) for k, v in self.sources
        ]
        if self.lengths is not None:
            self.lengths = self.lengths.index_select(0, sentences)


class Transformer(LayeredModel):
    """Encoder-decoder Transformer. A subclass may have layers of its own as `encoder_layer` and `decoder_layer`.

    Args:
        config: settings.
        task: gives the sizes of the vocabularies.

    Raises:
        UserError: embeddings are to be shared, but there is more than one vocabulary.
    """

    takes_packed = True
    stacks: tuple[str, ...] = ("encoder", "decoder")
    encoder_layer: type[nn.Module] = EncoderLayer
    decoder_layer: type[nn.Module] = DecoderLayer

    def __init__(self, config: TransformerConfig, task: Any):
        super().__init__(config)
        self.config: TransformerConfig
        self.encoder_embedding, self.decoder_embedding, self.output = tables(
            task, config.dim, config.tie_embeddings
        )
        self.encoder_position: PositionEncoding = config.position.build(
            config.stack(config.encoder_layers, causal=False)
        )
        self.decoder_position: PositionEncoding = config.position.build(
            config.stack(config.decoder_layers, causal=True)
        )
        self.encoder = self.stack(self.encoder_layer, config.encoder_layers)
        self.decoder = self.stack(self.decoder_layer, config.decoder_layers)
        self.encoder_norm = last_norm(config)
        self.decoder_norm = last_norm(config)

    def encode(self, source_tokens: Tensor, source_lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, S) to memory (B, S, C), and the lengths if some sentence is shorter than others.

        Where there are more lengths than rows, sentences are packed, and each is encoded by itself.
        """
        if len(source_lengths) > len(source_tokens):
            cu = cumulative(source_lengths)
            x = self.embed(self.encoder_embedding, self.encoder_position, source_tokens, 0, cu)
            return self._encode(x, {"cu_seqlens": (cu, cu)}), None
        padded = bool((source_lengths < source_tokens.shape[1]).any())
        lengths = source_lengths if padded else None
        x = self.embed(self.encoder_embedding, self.encoder_position, source_tokens)
        return self._encode(x, {"key_lengths": lengths}), lengths

    def _encode(self, x: Tensor, rows: Where) -> Tensor:
        for n, layer in enumerate(self.encoder):
            x = self._run(layer, x, {**rows, **self.where(self.encoder_position, n)})
        return self.encoder_norm(x)

    def forward(
        self,
        source_tokens: Tensor,
        source_lengths: Tensor,
        prev_output_tokens: Tensor,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        memory, lengths = self.encode(source_tokens, source_lengths)
        if target_lengths is None:
            own: Where = {}
            cross: Where = {"key_lengths": lengths}
            cu_target = None
        else:
            cu_source, cu_target = cumulative(source_lengths), cumulative(target_lengths)
            own = {"cu_seqlens": (cu_target, cu_target)}
            cross = {"cu_seqlens": (cu_target, cu_source)}
        x = self.embed(
            self.decoder_embedding, self.decoder_position, prev_output_tokens, 0, cu_target
        )
        memory = for_products(memory)
        for n, layer in enumerate(self.decoder):
            where = {**own, **self.where(self.decoder_position, n)}
            x = self._run(layer, x, memory, where, cross)
        return self.decoder_norm(x)

    def roles(self) -> dict[str, str]:
        found = {"output": "output"}
        for stack in self.stacks:
            found[f"{stack}_embedding"] = f"{stack}.embedding"
            layers: Any = self.get_submodule(stack)
            for n, layer in enumerate(layers):
                found |= roles_of_layer(layer, f"{stack}.{n}", stack)
            if self.config.norm == "pre":
                found[f"{stack}_norm"] = f"{stack}.norm"
        return found

    def attentions(self) -> dict[str, tuple[Any, ...]]:
        return {
            "encoder": schemes_of(self.encoder_position, 0),
            "decoder": schemes_of(self.decoder_position, 0),
            "cross": (),
        }

    def cross_attention(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        """Heads averaged, of the layer before the last (Garg et al. 2019, section 3)."""
        layers: Any = self.decoder
        chosen = max(len(layers) - 2, 0)
        body: MultiHeadAttention = layers[chosen].cross.body
        # Where layers are shared, it has run before.
        earlier = sum(layer is layers[chosen] for layer in layers[:chosen])
        weights: list[Tensor] = []

        def keep(module: nn.Module, args: Any, where: Any) -> None:
            q, k = body.queries(args[0]), body.keys_values(args[1])[0]
            less = where.get("key_lengths")  # a model may look at less than it is given
            lengths = source_lengths if less is None else less
            weights.append(attention_weights(q, k, lengths).mean(1))

        # Threads may share the model: what is hung onto it is hung onto a copy.
        watched, own = with_own(self, body)
        own.register_forward_pre_hook(keep, with_kwargs=True)
        # What would be computed again in a backward pass is not kept by then.
        watched.keeps_activations = True
        watched(source_tokens, source_lengths, prev_output_tokens)
        return weights[earlier]

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> TransformerState:
        memory, lengths = self.encode(source_tokens, source_lengths)
        layers: Any = self.decoder
        sources = []
        for layer in layers:
            k, v = layer.cross.body.keys_values(memory)
            sources.append((k.contiguous(), v.contiguous()))  # they are read many times
        wheres = [self.where(self.decoder_position, n) for n in range(len(layers))]
        return self.state(sources, lengths, wheres)

    def state(self, *args: Any) -> TransformerState:
        """Made of what `TransformerState` takes."""
        return TransformerState(*args)

    def extend(self, state: DecodingState, tokens: Tensor) -> Tensor:
        assert isinstance(state, TransformerState)
        x = self.embed_next(self.decoder_embedding, self.decoder_position, tokens, state)
        layers: Any = self.decoder
        for layer, own, source in zip(layers, state.layers, state.sources, strict=True):
            x = layer.step(x, own, source, state.lengths)
        return self.decoder_norm(x)


def attention_weights(q: Tensor, k: Tensor, key_lengths: Tensor) -> Tensor:
    """(B, H, I, D) and (B, G, J, D) to (B, H, I, J) weights over each sentence's true keys."""
    scores = q @ for_each_query_head(q, k).mT / math.sqrt(q.shape[-1])
    padding = torch.arange(k.shape[2], device=k.device)[None, :] >= key_lengths[:, None]
    return scores.masked_fill(padding[:, None, None], -math.inf).softmax(-1)


def cumulative(lengths: Tensor) -> Tensor:
    """(N,) lengths to (N + 1,) int32 starts of packed sentences."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


@mtplug.hookimpl
def register_architectures(register):
    register("transformer", Transformer, TransformerConfig)
