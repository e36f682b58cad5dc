"""What is registered."""

from __future__ import annotations

import mtplug
from mtplug_nllb.exporter import Nllb, NllbFormat
from mtplug_nllb.model import FairseqSinusoidal, NllbConfig, NllbTransformer
from mtplug_nllb.tokenizer import NllbTokenizerConfig, NllbTokenizerFactory

MTPLUG_API = {"architectures": 1, "exporters": 1, "position_encodings": 1, "tokenizers": 1}


@mtplug.hookimpl
def register_architectures(register):
    register("nllb", NllbTransformer, NllbConfig)


@mtplug.hookimpl
def register_position_encodings(register):
    register("fairseq_sinusoidal", FairseqSinusoidal)


@mtplug.hookimpl
def register_tokenizers(register):
    register("nllb", NllbTokenizerFactory, NllbTokenizerConfig)


@mtplug.hookimpl
def register_exporters(register):
    register("nllb", Nllb, NllbFormat)
