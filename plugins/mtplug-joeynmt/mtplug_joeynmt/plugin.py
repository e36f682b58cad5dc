"""What is registered."""

from __future__ import annotations

import mtplug
from mtplug_joeynmt.exporter import JoeyFormat, JoeyImporter
from mtplug_joeynmt.model import JoeyConfig, JoeyTransformer
from mtplug_joeynmt.tokenizer import JoeyTokenizerConfig, JoeyTokenizerFactory

MTPLUG_API = {"architectures": 1, "exporters": 1, "tokenizers": 1}


@mtplug.hookimpl
def register_architectures(register):
    register("joeynmt", JoeyTransformer, JoeyConfig)


@mtplug.hookimpl
def register_tokenizers(register):
    register("joeynmt", JoeyTokenizerFactory, JoeyTokenizerConfig)


@mtplug.hookimpl
def register_exporters(register):
    register("joeynmt", JoeyImporter, JoeyFormat)
