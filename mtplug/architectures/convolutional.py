"""The convolutional encoder-decoder (Gehring et al. 2017, "Convolutional Sequence to Sequence Learning").

Shapes: B sentences, K hypotheses of each, N = B·K, S source and T target positions, Q queries of a sentence,
E embedding size, C channels, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import mtplug
from mtplug.architectures.base import DecodingState
from mtplug.architectures.embeddings import Projecting, tables
from mtplug.data.tokenizers import PAD
from mtplug.errors import UserError
from mtplug.nn.dropout import dropout
from mtplug.nn.positions import PositionEncoding, Stack
from mtplug.registry import Selected, choice, component_field, require_range

HALF = math.sqrt(0.5)
"""Keeps the variance of a sum that of its two parts (section 3.5)."""


@dataclass
class ConvolutionalConfig:
    """Convolutional encoder-decoder: gated linear units, attention in every decoder layer."""

    dim: int = 512
    """embedding size"""
    channels: int = 512
    """of the layers"""
    kernel: int = 3
    """positions that a layer sees, an odd number; in the decoder the last ones so far"""
    encoder_layers: int = 20
    decoder_layers: int = 20
    dropout: float = 0.2
    """on embeddings and on each layer's input"""
    tie_embeddings: str = choice("all", "decoder", "none")
    """all: source, target and output share one table (needs a joint vocabulary)"""
    position: Selected = component_field("position_encodings", "learned")
    """one that is added to embeddings"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "dim", "channels", "encoder_layers", "decoder_layers")
        require_range(self, 0, 1, "dropout")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number, not {self.kernel}")


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A map with weight normalisation, initialised to keep the variance (section 3.6)."""
    made = nn.Linear(inputs, outputs)
    nn.init.normal_(made.weight, std=inputs**-0.5)
    nn.init.zeros_(made.bias)
    return weight_norm(made)


class GatedConvolution(nn.Module):
    """Convolution to twice the channels, of which one half gates the other (Dauphin et al. 2017)."""

    def __init__(self, config: ConvolutionalConfig):
        super().__init__()
        c = config
        conv = nn.Conv1d(c.channels, 2 * c.channels, c.kernel)
        # The gate halves what comes through, which the factor 4 makes up for (section 3.6).
        nn.init.normal_(conv.weight, std=math.sqrt(4 * (1 - c.dropout) / (c.kernel * c.channels)))
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv)
        self.dropout = c.dropout

    def drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L + kernel - 1, C), zeros or what came before included, to (B, L, C)."""
        return F.glu(self.conv(x_BLC.transpose(1, 2)), 1).transpose(1, 2)


@dataclass
class Memory:
    """Of the source: keys and values (B, S, E), padding (B, S), and √ of the lengths (B, 1, 1)."""

    keys: Tensor
    values: Tensor
    padding: Tensor
    scale: Tensor

    def rows(self, sentences: Tensor) -> Memory:
        return Memory(*(x.index_select(0, sentences) for x in vars(self).values()))


class DecoderLayer(nn.Module):
    """A gated convolution over the past, and attention to the source (section 3.3)."""

    def __init__(self, config: ConvolutionalConfig):
        super().__init__()
        self.conv = GatedConvolution(config)
        self.query = linear(config.channels, config.dim)
        self.out = linear(config.dim, config.channels)

    def forward(
        self, x_NTC: Tensor, past_NPC: Tensor, embedded_NTE: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """The next T positions after the inputs of the last P = kernel - 1, and the weights of attention
        (B, Q, S); Q counts all positions of all hypotheses of a sentence."""
        h = self.conv(torch.cat([past_NPC, x_NTC], 1))
        d = (self.query(h) + embedded_NTE) * HALF
        q_BQE = d.reshape(len(memory.keys), -1, d.shape[-1])
        scores = q_BQE @ memory.keys.transpose(1, 2)
        weights = scores.masked_fill(memory.padding[:, None], -math.inf).softmax(-1)
        weights = weights.to(memory.values.dtype)
        # The average of m values has 1/√m of their deviation, if all weigh the same (section 3.5).
        context = (weights @ memory.values) * memory.scale
        return (h + self.out(context.view(d.shape))) * HALF, weights


class ConvolutionalState(DecodingState):
    """The last inputs of each decoder layer, (N, kernel - 1, C), and the source."""

    def __init__(self, memory: Memory, past: list[Tensor]):
        self.memory, self.past, self.position = memory, past, 0

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        self.past = [x.index_select(0, parents.reshape(-1)) for x in self.past]
        self.memory = self.memory.rows(sentences)


class Convolutional(Projecting):
    """Convolutional encoder-decoder; every map and convolution has weight normalisation.

    Args:
        config: settings.
        task: gives the sizes of the vocabularies.

    Raises:
        UserError: embeddings are to be shared, but there is more than one vocabulary; or the position
            encoding adds nothing to embeddings.
    """

    def __init__(self, config: ConvolutionalConfig, task: Any):
        super().__init__()
        self.config = c = config
        self.encoder_embedding, self.decoder_embedding, self.output = tables(
            task, c.dim, c.tie_embeddings
        )
        with torch.no_grad():
            for table in (self.encoder_embedding, self.decoder_embedding):
                nn.init.normal_(table.weight, std=0.1)  # section 3.6
                table.weight[PAD].zero_()
        self.encoder_position = self._position(c.encoder_layers, causal=False)
        self.decoder_position = self._position(c.decoder_layers, causal=True)
        self.encoder_in, self.encoder_out = linear(c.dim, c.channels), linear(c.channels, c.dim)
        self.encoder = nn.ModuleList(GatedConvolution(c) for _ in range(c.encoder_layers))
        self.decoder_in, self.decoder_out = linear(c.dim, c.channels), linear(c.channels, c.dim)
        self.decoder = nn.ModuleList(DecoderLayer(c) for _ in range(c.decoder_layers))

    def _position(self, layers: int, causal: bool) -> PositionEncoding:
        made = self.config.position.build(Stack(self.config.dim, 1, layers, causal))
        if made.embed(0, 1) is None:
            raise UserError(
                f"architecture.position: {self.config.position.name} adds nothing to embeddings, "
                "which is all that convolutions can use; take learned or sinusoidal"
            )
        return made

    def drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.config.dropout, self.training)

    def embed(
        self, table: nn.Embedding, position: PositionEncoding, tokens: Tensor, start: int = 0
    ) -> Tensor:
        added = position.embed(start, tokens.shape[1])
        assert added is not None
        x = table(tokens)
        return self.drop(x + added.to(x.dtype))

    def encode(self, source_tokens: Tensor, source_lengths: Tensor) -> Memory:
        """(B, S) to what the decoder's layers look at."""
        places = torch.arange(source_tokens.shape[1], device=source_tokens.device)
        padding = places[None] >= source_lengths[:, None]
        real = ~padding[..., None]
        around = self.config.kernel // 2
        embedded = self.embed(self.encoder_embedding, self.encoder_position, source_tokens)
        x = self.encoder_in(embedded)
        for layer in self.encoder:
            # Padding has to look like the end of the sentence, where a convolution sees zeros.
            seen = F.pad(layer.drop(x * real), (0, 0, around, around))  # type: ignore[operator]
            x = (layer(seen) + x) * HALF
        keys = self.encoder_out(x)
        if self.training:
            # Every decoder layer's attention sends a gradient here: they are averaged (section 3.5).
            share = 1 / (2 * len(self.decoder))
            keys = share * keys + (1 - share) * keys.detach()
        scale = source_lengths.to(keys.dtype).sqrt()[:, None, None]
        return Memory(keys, (keys + embedded) * HALF, padding, scale)

    def decode(
        self, tokens: Tensor, start: int, past: list[Tensor], memory: Memory
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The next T positions: features (N, T, E), each layer's inputs (N, T, C) and weights."""
        embedded = self.embed(self.decoder_embedding, self.decoder_position, tokens, start)
        x, inputs, attention = self.decoder_in(embedded), [], []
        for layer, before in zip(self.decoder, past, strict=True):
            dropped = layer.conv.drop(x)  # type: ignore[union-attr,operator]
            inputs.append(dropped)
            change, weights = layer(dropped, before.to(dropped.dtype), embedded, memory)
            x = (change + x) * HALF
            attention.append(weights)
        return self.drop(self.decoder_out(x)), inputs, attention

    def _whole(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        memory = self.encode(source_tokens, source_lengths)
        past = self._nothing(memory)
        features, _, attention = self.decode(prev_output_tokens, 0, past, memory)
        return features, attention

    def _nothing(self, memory: Memory) -> list[Tensor]:
        shape = len(memory.keys), self.config.kernel - 1, self.config.channels
        return [memory.keys.new_zeros(shape)] * len(self.decoder)

    def forward(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        return self._whole(source_tokens, source_lengths, prev_output_tokens)[0]

    def cross_attention(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        """The mean over the layers."""
        weights = self._whole(source_tokens, source_lengths, prev_output_tokens)[1]
        return torch.stack(weights).mean(0)

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> ConvolutionalState:
        memory = self.encode(source_tokens, source_lengths)
        return ConvolutionalState(memory, self._nothing(memory))

    def extend(self, state: DecodingState, tokens: Tensor) -> Tensor:
        assert isinstance(state, ConvolutionalState)
        rows = tokens.reshape(-1, 1)
        features, inputs, _ = self.decode(rows, state.position, state.past, state.memory)
        width = self.config.kernel - 1
        seen = [torch.cat([a, b], 1) for a, b in zip(state.past, inputs, strict=True)]
        state.past = [x[:, x.shape[1] - width :] for x in seen]
        state.position += 1
        return features.view(*tokens.shape, -1)

    def roles(self) -> dict[str, str]:
        found = {
            "encoder_embedding": "encoder.embedding",
            "decoder_embedding": "decoder.embedding",
            "output": "output",
        }
        for n in range(len(self.encoder)):
            found[f"encoder.{n}.conv"] = "encoder.conv"
        for n in range(len(self.decoder)):
            found[f"decoder.{n}.conv.conv"] = "decoder.conv"
            found[f"decoder.{n}.query"] = "decoder.cross.q"
            found[f"decoder.{n}.out"] = "decoder.cross.out"
        return found


@mtplug.hookimpl
def register_architectures(register):
    register("convolutional", Convolutional, ConvolutionalConfig)
