"""Architecture `llama`: what Llama and its kin have that the architecture `decoder_only` does not, and the other way round.

The source is a prompt, which no `</s>` ends: the target begins behind its last token.
Shapes: B sentences, S source tokens, H heads, I queries, J keys, D head size, C model size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.architectures.decoder_only import DecoderOnly, DecoderOnlyConfig
from mtplug.architectures.layers import EncoderLayer
from mtplug.nn.attention import MultiHeadAttention
from mtplug.registry import choice, require_range

BIASED = {"none": (), "qkv": ("q", "k", "v"), "attention": ("q", "k", "v", "out")}
"""Which linear maps of attention have a bias, by the setting `bias`."""
NEVER = -1e4
"""Logit of ids that the model does not have: its probability is 0, and label smoothing does not become infinite by it."""


@dataclass
class LlamaConfig(DecoderOnlyConfig):
    """Decoder-only Transformer of Llama, Mistral and Qwen; with the defaults it has the layers of Llama."""

    norm_type: str = choice("rms", "layer")
    """rms: only divided by the root mean square, and scaled, as Llama has it"""
    activation: str = choice("swiglu", "relu", "gelu", "gelu_tanh", "swish", "geglu", "geglu_tanh")
    """swiglu: swish of a further linear map gates the inner layer, as Llama has it"""
    dropout: float = 0.0
    """on embeddings and on each sublayer's output"""
    tie_embeddings: bool = False
    """the output layer has the weights of the embedding, as in small models of Llama and Qwen"""
    norm_eps: float = 1e-6
    """what is added to the mean square in normalisations"""
    bias: str = choice("none", "qkv", "attention")
    """which linear maps have a bias: those of queries, keys and values, as in Qwen2; all of attention; or none"""
    qk_norm: bool = False
    """queries and keys are normalised in each head, as in Qwen3"""
    absent: list[int] = field(default_factory=list)
    """ids that the published model does not have, which are never predicted"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 0, math.inf, "norm_eps")


class NormedAttention(MultiHeadAttention):
    """Queries and keys are normalised in each head, before they turn (Henry et al. 2020, as RMSNorm)."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.q_norm = nn.RMSNorm(self.head_size)
        self.k_norm = nn.RMSNorm(self.head_size)

    def queries(self, x: Tensor) -> Tensor:
        q = super().queries(x)
        return self.q_norm(q).to(q.dtype)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = super().keys_values(x)
        return self.k_norm(k).to(v.dtype), v


class NormedLayer(EncoderLayer):
    attention_kind = NormedAttention


class Llama(DecoderOnly):
    """Embeddings are not scaled; most linear maps have no bias."""

    config: LlamaConfig
    joint = False

    def __init__(self, config: LlamaConfig, task: Any):
        super().__init__(config, task)
        self.embedding_scale = 1.0
        for name, module in self.named_modules():
            if isinstance(module, nn.RMSNorm):
                module.eps = config.norm_eps
            of_attention = ".attention." in name and name.rpartition(".")[2] in BIASED[config.bias]
            if isinstance(module, nn.Linear) and not of_attention:
                module.register_parameter("bias", None)
        self.never: Tensor
        never = torch.zeros(len(task.target_tokenizer))
        never[config.absent] = NEVER
        self.register_buffer("never", never, persistent=False)

    def stack(self, layer: Callable[..., nn.Module], count: int) -> nn.ModuleList:
        return super().stack(NormedLayer if self.config.qk_norm else layer, count)

    def read(self, source_lengths: Tensor) -> Tensor:
        # An empty source, as of a language model, is an `</s>` all the same.
        return (source_lengths - 1).clamp(min=1)

    def project(self, features: Tensor) -> Tensor:
        logits = super().project(features)
        return logits + self.never if self.config.absent else logits

    @property
    def output_weight(self) -> Tensor | None:
        return None if self.config.absent else super().output_weight

    @property
    def output_map(self) -> tuple[Tensor, Tensor | None] | None:
        weight = super().output_weight
        assert weight is not None
        return weight, self.never if self.config.absent else None
