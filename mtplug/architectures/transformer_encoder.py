"""The encoder of a Transformer by itself, for masked language modelling and for labels (Devlin et al. 2019).

Shapes: B sentences, S source positions, C model size, V labels or pieces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import mtplug
from mtplug.architectures.base import DecodingState
from mtplug.architectures.embeddings import embedding, output_layer
from mtplug.architectures.layers import EncoderLayer, LayeredModel, LayersConfig, last_norm
from mtplug.architectures.transformer import Transformer, TransformerState
from mtplug.errors import UserError
from mtplug.nn.dropout import dropout
from mtplug.nn.positions import PositionEncoding, schemes_of
from mtplug.registry import require_range


@dataclass
class TransformerEncoderConfig(LayersConfig):
    """The encoder of `transformer` by itself: what the task labels or masks is told at each position."""

    encoder_layers: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 1, math.inf, "encoder_layers")


class Head(nn.Module):
    """What stands between the encoder and the labels: a dense layer, GELU and a norm (as in BERT)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x_BSC: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(x_BSC)))


class TransformerEncoder(Transformer):
    """The same modules as in `Transformer`, under the same names, so that weights go from one to the other.

    Where a task labels with the source's own vocabulary, as masked language modelling does, the output
    shares the table of embeddings.

    Args:
        config: settings.
        task: an aligned one; gives the sizes of the vocabularies.
    """

    aligned = True
    takes_packed = False
    stacks = ("encoder",)

    def __init__(self, config: TransformerEncoderConfig, task: Any):
        LayeredModel.__init__(self, config)  # not Transformer's: there is no decoder
        self.config: Any
        self.encoder_embedding = embedding(len(task.source_tokenizer), config.dim)
        self.encoder_position: PositionEncoding = config.position.build(
            config.stack(config.encoder_layers, causal=False)
        )
        self.encoder = self.stack(EncoderLayer, config.encoder_layers)
        self.encoder_norm = last_norm(config)
        self.head = Head(config.dim)
        shared = task.source_tokenizer is task.target_tokenizer
        self.output = output_layer(
            len(task.target_tokenizer), config.dim, self.encoder_embedding if shared else None
        )

    def forward(  # type: ignore[override]
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        memory, _ = self.encode(source_tokens, source_lengths)
        return self.head(dropout(memory, self.config.dropout, self.training))

    def attentions(self) -> dict[str, tuple[Any, ...]]:
        return {"encoder": schemes_of(self.encoder_position, 0)}

    def cross_attention(self, *args: Tensor) -> None:  # type: ignore[override]
        return None

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> TransformerState:
        raise UserError("architecture.name: transformer_encoder labels text, it writes none")

    def step(self, state: DecodingState, tokens: Tensor) -> Tensor:
        raise UserError("architecture.name: transformer_encoder labels text, it writes none")


@mtplug.hookimpl
def register_architectures(register):
    register("transformer_encoder", TransformerEncoder, TransformerEncoderConfig)
