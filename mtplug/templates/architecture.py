"""An architecture: a Transformer whose encoder output passes a learnt gate."""

from dataclasses import dataclass

import torch
from torch import nn

import mtplug
from mtplug.architectures import Transformer, TransformerConfig

MTPLUG_API = {"architectures": 1}


@dataclass
class GatedConfig(TransformerConfig):
    """Transformer with a gate behind the encoder."""

    gate_bias: float = 1.0
    """what the gate starts from"""


class GatedTransformer(Transformer):
    def __init__(self, config: GatedConfig, task):
        super().__init__(config, task)
        self.gate = nn.Linear(config.dim, config.dim)
        nn.init.constant_(self.gate.bias, config.gate_bias)

    def encode(self, source_tokens, source_lengths):
        memory, lengths = super().encode(source_tokens, source_lengths)
        return memory * torch.sigmoid(self.gate(memory)), lengths


@mtplug.hookimpl
def register_architectures(register):
    register("NAME", GatedTransformer, GatedConfig)
