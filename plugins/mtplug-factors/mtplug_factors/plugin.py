"""What is registered."""

from __future__ import annotations

import mtplug
from mtplug_factors.model import FactoredTransformer, FactoredTransformerConfig
from mtplug_factors.tokenizer import FactoredConfig, FactoredFactory

MTPLUG_API = {"architectures": 1, "tokenizers": 1}


@mtplug.hookimpl
def register_architectures(register):
    register("factored_transformer", FactoredTransformer, FactoredTransformerConfig)


@mtplug.hookimpl
def register_tokenizers(register):
    register("factored", FactoredFactory, FactoredConfig)
