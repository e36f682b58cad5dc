"""A Transformer whose layers share weights: one set used by all, or a few sets in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

import mtplug
from mtplug.architectures.transformer import Transformer, TransformerConfig
from mtplug.registry import choice


@dataclass
class SharedTransformerConfig(TransformerConfig):
    """Transformer with fewer sets of layer weights than layers (Dabre and Fujita 2019); by default
    one for the encoder and one for the decoder."""

    encoder_sets: int = 1
    """sets of weights that the encoder's layers share"""
    decoder_sets: int = 1
    """sets of weights that the decoder's layers share"""
    order: str = choice("cycle", "sequence", "cycle_rev")
    """the sets of 6 layers that share 3: 123123, 112233 or 123321 (Takase and Kiyono 2023)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for stack in ("encoder", "decoder"):
            sets, layers = getattr(self, f"{stack}_sets"), getattr(self, f"{stack}_layers")
            if not 1 <= sets <= layers:
                raise ValueError(f"{stack}_sets must be from 1 to {layers}, the layers, not {sets}")


def sets_of_layers(order: str, layers: int, sets: int) -> list[int]:
    """The number of the set that each layer uses, both counted from 0."""
    if order == "sequence":
        return [layer * sets // layers for layer in range(layers)]
    found = [layer % sets for layer in range(layers)]
    if order == "cycle_rev":
        last = (layers - 1) // sets * sets if layers > sets else layers
        found[last:] = [sets - 1 - n for n in found[last:]]
    return found


class SharedTransformer(Transformer):
    """Transformer with shared layers; position tables of each layer remain its own."""

    config: SharedTransformerConfig

    def stack(self, layer: Callable[..., nn.Module], count: int) -> nn.ModuleList:
        c = self.config
        sets = c.encoder_sets if layer is self.encoder_layer else c.decoder_sets
        own = super().stack(layer, sets)
        return nn.ModuleList(own[n] for n in sets_of_layers(c.order, count, sets))


@mtplug.hookimpl
def register_architectures(register):
    register("shared_transformer", SharedTransformer, SharedTransformerConfig)
