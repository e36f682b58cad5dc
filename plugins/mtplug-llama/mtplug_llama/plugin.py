"""What is registered."""

from __future__ import annotations

import mtplug
from mtplug_llama.exporter import LlamaExporter, LlamaFormat
from mtplug_llama.model import Llama, LlamaConfig
from mtplug_llama.tokenizer import PromptTokenizerConfig, PromptTokenizerFactory

MTPLUG_API = {"architectures": 1, "exporters": 1, "tokenizers": 1}


@mtplug.hookimpl
def register_architectures(register):
    register("llama", Llama, LlamaConfig)


@mtplug.hookimpl
def register_tokenizers(register):
    register("llama", PromptTokenizerFactory, PromptTokenizerConfig)


@mtplug.hookimpl
def register_exporters(register):
    register("llama", LlamaExporter, LlamaFormat)
