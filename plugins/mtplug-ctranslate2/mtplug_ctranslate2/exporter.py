"""The exporter: weights, vocabulary and subword models in a folder that CTranslate2 opens."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch

import mtplug
from mtplug.data.batching import collate
from mtplug.data.tokenizers import EOS, UNK
from mtplug.errors import UserError
from mtplug.registry import choice
from mtplug.search import forced_scores
from mtplug_ctranslate2 import spec
from mtplug_ctranslate2.engine import CTranslate2Engine

MTPLUG_API = {"exporters": 1}

TOLERANCE = 1e-3
"""nats that a token's log-probability in float32 may differ from ours"""


@dataclass
class CTranslate2Config:
    """A folder for CTranslate2, and search with it; in float32 it computes what the model does."""

    quantization: str = choice(
        "float32", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16",
        "bfloat16",
    )  # fmt: skip
    """how weights are stored and multiplied"""
    positions: int = 4096
    """rows of the table of sinusoidal positions; no sentence can be longer"""

    def __post_init__(self) -> None:
        if self.positions < 1:
            raise ValueError(f"positions {self.positions}: at least 1")


class CTranslate2Exporter:
    def __init__(self, config: CTranslate2Config):
        self.config = config

    def why_not(self, model: Any, task: Any) -> str:
        return spec.why_not(model)

    def export(self, translator: Any, path: Path) -> None:
        """Write `path`; it is first held to the model's own scores in float32.

        Raises:
            UserError: CTranslate2 cannot take the model, or would compute something else.
        """
        if reason := self.why_not(translator.model, translator.task):
            raise UserError(f"exporter ctranslate2: {reason}")
        self._save(translator, path, "")
        self._compare(translator, path)
        if self.config.quantization != "float32":
            self._save(translator, path, self.config.quantization)

    def engine(self, path: Path, device: str) -> CTranslate2Engine:
        return CTranslate2Engine(path, device, self.config.quantization)

    def _save(self, translator: Any, path: Path, quantization: str) -> None:
        made, task = spec.build(translator.model, self.config.positions), translator.task
        for register, tokenizer in (
            (made.register_source_vocabulary, task.source_tokenizer),
            (made.register_target_vocabulary, task.target_tokenizer),
        ):
            tokens = tokenizer.tokens(list(range(len(tokenizer))))
            if len(set(tokens)) < len(tokens):
                twice = next(t for t in tokens if tokens.count(t) > 1)
                raise UserError(f"exporter ctranslate2: token {twice!r} is in the vocabulary twice")
            register(tokens)
        end, unknown = tokens[EOS], tokens[UNK]
        model = translator.model
        made.config.bos_token = made.config.eos_token = end
        made.config.decoder_start_token = tokens[spec.start_of(model)]
        made.config.unk_token = unknown
        made.config.add_source_eos = getattr(model, "source_end", True)
        made.config.layer_norm_epsilon = model.encoder[0].ffn.norm.eps
        made.validate()
        made.optimize(quantization=quantization or None)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        made.save(str(path))
        if task.source_tokenizer is task.target_tokenizer:
            task.source_tokenizer.save(path, "joint")
        else:
            task.source_tokenizer.save(path, "source")
            task.target_tokenizer.save(path, "target")

    def _compare(self, translator: Any, path: Path) -> None:
        """Scores of random token sequences by both."""
        rng = np.random.default_rng(1)
        sizes = [
            len(t) for t in (translator.task.source_tokenizer, translator.task.target_tokenizer)
        ]
        pairs = [
            tuple(rng.integers(min(3, size - 1), size, length) for size in sizes)
            for length in (1, 6, 17)
        ]
        device = next(translator.model.parameters()).device
        training = translator.model.training
        translator.model.eval()
        ours = forced_scores(translator.model, collate(pairs, np.arange(3)).to(device))
        translator.model.train(training)
        engine = CTranslate2Engine(path, "cpu", "float32")
        theirs = engine.score(*([p[side].tolist() for p in pairs] for side in (0, 1)))
        for a, b in zip(ours, theirs, strict=True):
            worst = float((torch.tensor(a) - torch.tensor(b)).abs().max())
            if not worst < TOLERANCE:
                shutil.rmtree(path)
                raise UserError(
                    f"exporter ctranslate2: CTranslate2 {ctranslate2.__version__} scores random "
                    f"sentences otherwise than this model does, by {worst:.2g} nats a token"
                )


@mtplug.hookimpl
def register_exporters(register):
    register("ctranslate2", CTranslate2Exporter, CTranslate2Config)
