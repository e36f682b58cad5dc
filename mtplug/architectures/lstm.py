"""An LSTM encoder-decoder with attention (Bahdanau et al. 2015; Luong et al. 2015).

Shapes: B sentences, K hypotheses of each, N = B·K, S source and T target positions, Q queries of a sentence,
C model size, L decoder layers, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import mtplug
from mtplug.architectures.base import DecodingState
from mtplug.architectures.embeddings import Projecting, tables
from mtplug.nn.dropout import dropout
from mtplug.registry import choice, require_range


@dataclass
class LSTMConfig:
    """LSTM encoder-decoder: bidirectional encoder, attention, input feeding."""

    dim: int = 512
    """model size; each direction of the encoder has half of it"""
    encoder_layers: int = 2
    decoder_layers: int = 2
    attention: str = choice("general", "dot", "additive")
    """score of decoder state h and encoder output e: h·We or h·e (Luong et al. 2015, section 3.1), or
    v·tanh(Wh + Ue) (Bahdanau et al. 2015, appendix A.1.2)"""
    input_feeding: bool = True
    """the result of attention at a step is fed into the next one (Luong et al. 2015, section 3.3); without
    it all steps of a training batch are computed at once"""
    dropout: float = 0.2
    """on embeddings, between layers, and on features"""
    tie_embeddings: str = choice("all", "decoder", "none")
    """all: source, target and output share one table (needs a joint vocabulary)"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "dim", "encoder_layers", "decoder_layers")
        require_range(self, 0, 1, "dropout")
        if self.dim % 2:
            raise ValueError(f"dim {self.dim} is odd; each direction of the encoder has half of it")


class Attention(nn.Module):
    """Scores of queries and keys, and what they find in the memory.

    Args:
        dim: C of queries and memory.
        score: general, dot or additive.
    """

    def __init__(self, dim: int, score: str):
        super().__init__()
        self.key = (
            nn.Identity() if score == "dot" else nn.Linear(dim, dim, bias=score == "additive")
        )
        self.additive = score == "additive"
        if self.additive:
            self.query = nn.Linear(dim, dim, bias=False)
            self.vector = nn.Linear(dim, 1, bias=False)

    def forward(self, q_BQC: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """What is found (B, Q, C), and the weights (B, Q, S) that sum to 1 over true tokens."""
        if self.additive:
            inner = self.query(q_BQC)[:, :, None] + memory.keys[:, None]
            scores = self.vector(inner.tanh())[..., 0]
        else:
            scores = q_BQC @ memory.keys.transpose(1, 2)
        scores = scores.masked_fill(memory.padding[:, None], -math.inf)
        weights = scores.softmax(-1).to(memory.values.dtype)
        return weights @ memory.values, weights


@dataclass
class Memory:
    """What the decoder looks at: keys and values (B, S, C), and where there is padding (B, S)."""

    keys: Tensor
    values: Tensor
    padding: Tensor

    def rows(self, sentences: Tensor) -> Memory:
        return Memory(*(x.index_select(0, sentences) for x in vars(self).values()))


class LSTMState(DecodingState):
    """Of N hypotheses the LSTM's states h and c (L, N, C), and what attention found last (N, C)."""

    def __init__(self, memory: Memory, h: Tensor, c: Tensor, fed: Tensor):
        self.memory, self.h, self.c, self.fed = memory, h, c, fed

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        rows = parents.reshape(-1)
        self.h, self.c = self.h.index_select(1, rows), self.c.index_select(1, rows)
        self.fed = self.fed.index_select(0, rows)
        self.memory = self.memory.rows(sentences)


class LSTM(Projecting):
    """LSTM encoder-decoder with attention.

    The decoder starts from maps of the encoder's last states in both directions; its features are Luong's
    h̃ = tanh(W[c; h]) of what attention finds, c, and its own top state, h.

    Args:
        config: settings.
        task: gives the sizes of the vocabularies.

    Raises:
        UserError: embeddings are to be shared, but there is more than one vocabulary.
    """

    def __init__(self, config: LSTMConfig, task: Any):
        super().__init__()
        self.config = config
        dim = config.dim
        self.encoder_embedding, self.decoder_embedding, self.output = tables(
            task, dim, config.tie_embeddings
        )

        def lstm(size: int, hidden: int, layers: int, bidirectional: bool) -> nn.LSTM:
            between = config.dropout if layers > 1 else 0.0
            return nn.LSTM(
                size, hidden, layers, batch_first=True, dropout=between, bidirectional=bidirectional
            )

        self.encoder = lstm(dim, dim // 2, config.encoder_layers, True)
        self.bridge = nn.Linear(dim, 2 * config.decoder_layers * dim)
        self.decoder = lstm(dim * (1 + config.input_feeding), dim, config.decoder_layers, False)
        self.attention = Attention(dim, config.attention)
        self.mix = nn.Linear(2 * dim, dim, bias=False)

    def embed(self, table: nn.Embedding, tokens: Tensor) -> Tensor:
        x = table(tokens) * math.sqrt(self.config.dim)
        return dropout(x, self.config.dropout, self.training)

    def encode(self, source_tokens: Tensor, source_lengths: Tensor) -> LSTMState:
        """(B, S) to what decoding starts from."""
        x = self.embed(self.encoder_embedding, source_tokens)
        packed = pack_padded_sequence(
            x, source_lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        found, (last, _) = self.encoder(packed)
        length = source_tokens.shape[1]
        values, _ = pad_packed_sequence(found, batch_first=True, total_length=length)
        padding = torch.arange(length, device=x.device)[None] >= source_lengths[:, None]
        memory = Memory(self.attention.key(values), values, padding)
        # The forward direction ends at each sentence's last token, the backward one at its first.
        both = torch.cat([last[-2], last[-1]], -1)
        started = self.bridge(both).tanh().unflatten(-1, (2, self.config.decoder_layers, -1))
        h_LNC, c_LNC = (x.transpose(0, 1).contiguous() for x in started.unbind(1))
        return LSTMState(memory, h_LNC, c_LNC, torch.zeros_like(h_LNC[0]))

    def advance(self, x_NTC: Tensor, state: LSTMState) -> tuple[Tensor, Tensor]:
        """Features (N, T, C) of the next T inputs, and attention weights (B, K·T, S); one input at a
        time where it is fed."""
        if self.config.input_feeding:
            x_NTC = torch.cat([x_NTC, state.fed[:, None].to(x_NTC.dtype)], -1)
        h_NTC, (state.h, state.c) = self.decoder(x_NTC, (state.h, state.c))
        # All hypotheses of a sentence look at the same memory.
        q_BQC = h_NTC.reshape(len(state.memory.values), -1, h_NTC.shape[-1])
        context, weights = self.attention(q_BQC, state.memory)
        features = self.mix(torch.cat([context.view(h_NTC.shape), h_NTC], -1)).tanh()
        state.fed = features[:, -1]
        return dropout(features, self.config.dropout, self.training), weights

    def decode(self, tokens: Tensor, state: LSTMState) -> tuple[Tensor, Tensor]:
        """(N, T) to features (N, T, C) and, of one hypothesis a sentence, weights (B, T, S)."""
        x = self.embed(self.decoder_embedding, tokens)
        if not self.config.input_feeding:
            return self.advance(x, state)
        steps = [self.advance(x[:, t : t + 1], state) for t in range(x.shape[1])]
        features, weights = zip(*steps, strict=True)
        return torch.cat(features, 1), torch.cat(weights, 1)

    def forward(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        return self.decode(prev_output_tokens, self.encode(source_tokens, source_lengths))[0]

    def cross_attention(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        return self.decode(prev_output_tokens, self.encode(source_tokens, source_lengths))[1]

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> LSTMState:
        return self.encode(source_tokens, source_lengths)

    def extend(self, state: DecodingState, tokens: Tensor) -> Tensor:
        assert isinstance(state, LSTMState)
        features, _ = self.decode(tokens.reshape(-1, 1), state)
        return features.view(*tokens.shape, -1)

    def roles(self) -> dict[str, str]:
        found = {
            "encoder_embedding": "encoder.embedding",
            "decoder_embedding": "decoder.embedding",
            "output": "output",
            "encoder": "encoder.rnn",
            "decoder": "decoder.rnn",
            "bridge": "decoder.bridge",
            "mix": "decoder.cross.out",
        }
        if self.config.attention != "dot":
            found["attention.key"] = "decoder.cross.k"
        if self.config.attention == "additive":
            found["attention.query"] = "decoder.cross.q"
        return found


@mtplug.hookimpl
def register_architectures(register):
    register("lstm", LSTM, LSTMConfig)
