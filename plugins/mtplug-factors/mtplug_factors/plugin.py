"""What is registered, and the check that tokenizer and model go together."""

from __future__ import annotations

import mtplug
from mtplug.errors import StopRun
from mtplug_factors.model import (
    FactoredEmbedding,
    FactoredTransformer,
    FactoredTransformerConfig,
    Layout,
)
from mtplug_factors.tokenizer import FactoredConfig, FactoredFactory

MTPLUG_API = {"architectures": 1, "tokenizers": 1}


@mtplug.hookimpl
def register_architectures(register):
    register("factored_transformer", FactoredTransformer, FactoredTransformerConfig)


@mtplug.hookimpl
def register_tokenizers(register):
    register("factored", FactoredFactory, FactoredConfig)


@mtplug.hookimpl
def on_train_start(trainer):
    made = Layout.of(trainer.task.source_tokenizer)
    reads = any(isinstance(module, FactoredEmbedding) for module in trainer.model.modules())
    if made and not reads:
        raise StopRun(
            f"architecture.name: {trainer.run.architecture.name} knows no factors; with tokenizer.name=factored, take "
            "factored_transformer"
        )
    if reads and not made:
        raise StopRun(
            f"tokenizer.name: {trainer.run.tokenizer.name} reads no factors; with architecture.name=factored_transformer, "
            "take factored"
        )
