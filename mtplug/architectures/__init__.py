"""Models: the kind `architectures`."""

from mtplug.architectures.base import DecodingState, Model
from mtplug.architectures.transformer import Transformer, TransformerConfig

__all__ = ["DecodingState", "Model", "Transformer", "TransformerConfig"]
