"""Architecture `t5`: what T5 has that mtplug's Transformer does not, and the other way round.

Scores are not divided by the square root of the head size, and embeddings are not multiplied by that of the model size;
weights that are read make up for both, so that attention is computed as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mtplug.architectures.transformer import TransformerConfig
from mtplug.errors import UserError
from mtplug.exporting.marian_model import OwnStart
from mtplug.registry import Selected, choice, component_field


@dataclass
class T5Config(TransformerConfig):
    """Transformer of T5 and its kin; with the defaults it has the layers of T5 1.1."""

    norm: str = choice("pre", "post")
    """layer normalisation before each sublayer, as T5 has it, or after each residual sum"""
    norm_type: str = choice("rms", "layer")
    """rms: only divided by the root mean square, and scaled, as T5 has it"""
    activation: str = choice("geglu_tanh", "relu", "gelu", "gelu_tanh", "swish", "geglu", "swiglu")
    """relu in T5 itself, geglu_tanh from T5 1.1 on"""
    tie_embeddings: str = choice("none", "all")
    """source and target share a table; all: the output too, as in T5 itself; none: it has its own, as from T5 1.1 on"""
    position: Selected = component_field("position_encodings", "t5_bias")


class T5(OwnStart):
    """Linear maps without biases, one table of embeddings, an embedding of its own to begin to decode with.

    Raises:
        UserError: there is more than one vocabulary.
    """

    def __init__(self, config: T5Config, task: Any):
        if task.source_tokenizer is not task.target_tokenizer:
            raise UserError("architecture t5 has one table of embeddings; set tokenizer.joint=true")
        super().__init__(config, task)
        self.encoder_embedding = self.decoder_embedding
        for stack in (self.encoder, self.decoder):
            for module in stack.modules():
                if isinstance(module, nn.Linear):
                    module.register_parameter("bias", None)
