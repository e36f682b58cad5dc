"""Architecture `joeynmt`: decoding begins with `<s>`, and normalisations have another epsilon than torch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mtplug.architectures.layers import Sublayer
from mtplug.exporting.marian_model import ForeignConfig, ForeignTransformer


@dataclass
class JoeyConfig(ForeignConfig):
    """Transformer of JoeyNMT."""

    open_encoder: bool = False
    """the encoder normalises before each sublayer and not at its end, whatever `norm` says of the decoder: what JoeyNMT
    does where its settings have no `layer_norm`"""


class JoeyTransformer(ForeignTransformer):
    config: JoeyConfig
    ctranslate2 = True

    def __init__(self, config: JoeyConfig, task: Any):
        super().__init__(config, task)
        if config.open_encoder:
            for module in self.encoder.modules():
                if isinstance(module, Sublayer):
                    module.pre = True
            self.encoder_norm = nn.Identity()
            self.ctranslate2 = False
