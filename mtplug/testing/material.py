"""What checks work on: a task with a vocabulary of words, batches of random sentences, a small model.

Shapes: B sentences, S source and T target positions, C model size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtplug.architectures.base import Model
from mtplug.config.build import component_from_overrides
from mtplug.data.batching import Batch, collate, concatenate, sentences
from mtplug.data.tokenizers import PAD, SPECIAL, Tokenizer
from mtplug.tasks.base import Task
from mtplug.tasks.sized import Sized
from mtplug.testing.tiny import LEXICON

TINY_TRANSFORMER = (
    "dim=16", "ffn_dim=16", "heads=2", "encoder_layers=1", "decoder_layers=2", "dropout=0.1",
)  # fmt: skip
"""Settings of a Transformer that a check can afford."""


class Words(Tokenizer):
    """The words of the made-up languages."""

    words = [*SPECIAL, *LEXICON, *LEXICON.values()]

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, texts: list[str]) -> list[list[int]]:
        ids = {word: i for i, word in enumerate(self.words)}
        return [[ids.get(word, 2) for word in text.split()] for text in texts]

    def decode(self, ids: list[list[int]]) -> list[str]:
        return [" ".join(self.words[i] for i in row if i > 1) for row in ids]

    def tokens(self, ids: list[int]) -> list[str]:
        return [self.words[i] for i in ids]

    def save(self, folder: Path, side: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def load(cls, folder: Path, side: str) -> Words:
        return cls()


class WordsTask:
    """What architectures and criteria are built with: tokenizers, one for both languages."""

    target_lang = "en"
    translates, aligned, continues = Task.translates, Task.aligned, Task.continues
    languages, tags, window = Task.languages, Task.tags, Task.window
    address, written_lang, input_text = Task.address, Task.written_lang, Task.input_text

    def __init__(self) -> None:
        self.source_tokenizer = self.target_tokenizer = Words()


class UntrainedTask:
    """A task before its tokenizers are trained: only their sizes are there."""

    def __init__(self, task: Any):
        self.target_lang = task.target_lang
        joint = task.source_tokenizer is task.target_tokenizer
        self.source_tokenizer: Any = Sized(len(task.source_tokenizer))
        self.target_tokenizer = (
            self.source_tokenizer if joint else Sized(len(task.target_tokenizer))
        )


def random_batch(lengths: tuple[tuple[int, int], ...] = ((5, 3), (2, 6), (4, 4))) -> Batch:
    """Sentences of given numbers of source and target tokens, `</s>` not counted."""
    rng = np.random.default_rng(len(lengths))
    pairs = [tuple(rng.integers(3, len(Words.words), n) for n in both) for both in lengths]
    return collate(pairs, np.arange(len(pairs)))  # type: ignore[arg-type]


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    """Some sentences of a batch, with no more padding than they need."""
    pairs = _pairs(batch)
    return collate([pairs[r] for r in rows], np.array(rows))


def padded(batch: Batch, more: int = 3) -> Batch:
    """The same sentences with `more` columns of padding on both sides."""

    def wider(tokens: Tensor) -> Tensor:
        return torch.cat([tokens, tokens.new_full((len(tokens), more), PAD)], 1)

    names = ("source_tokens", "prev_output_tokens", "target_tokens")
    made: dict[str, Any] = {name: wider(getattr(batch, name)) for name in names}
    return replace(batch, **made)


def packed(batch: Batch) -> Batch:
    """The same sentences one after another in one row."""
    return concatenate(_pairs(batch), batch.ids)


def _pairs(batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(sentences(batch, "source"), sentences(batch, "target"), strict=True))


class MeanWords(Model):
    """Ignores order: a recurrent decoder that starts from the mean of the source embeddings."""

    def __init__(self, tied: bool = True, seed: int = 1, dim: int = 12):
        super().__init__()
        torch.manual_seed(seed)
        size = len(Words.words)
        self.source = nn.Embedding(size, dim, padding_idx=PAD)
        self.target = nn.Embedding(size, dim, padding_idx=PAD)
        self.rnn = nn.GRU(dim, dim, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Linear(dim, size, bias=False)
        self.tied = tied

    def forward(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        mean = self.dropout(self.source(source_tokens)).sum(1) / source_lengths[:, None]
        return self.rnn(self.target(prev_output_tokens), mean[None].contiguous())[0]

    def project(self, features: Tensor) -> Tensor:
        return self.output(features)

    @property
    def output_weight(self) -> Tensor | None:
        return self.output.weight if self.tied else None


def model_of(architecture: tuple[str, ...], seed: int = 1) -> Model:
    """`MeanWords`, or what is named: an architecture and settings of it."""
    if not architecture:
        return MeanWords(seed=seed)
    torch.manual_seed(seed)
    chosen = component_from_overrides("architectures", architecture[0], list(architecture[1:]))
    return chosen.build(WordsTask())


class PackedMeanWords(MeanWords):
    """Takes sentences in one row too, one at a time."""

    takes_packed = True

    def forward(
        self,
        source_tokens: Tensor,
        source_lengths: Tensor,
        prev_output_tokens: Tensor,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        if target_lengths is None:
            return super().forward(source_tokens, source_lengths, prev_output_tokens)
        sources = source_tokens[0].split(source_lengths.tolist())
        targets = prev_output_tokens[0].split(target_lengths.tolist())
        rows = zip(sources, source_lengths, targets, strict=True)
        return torch.cat(
            [super(PackedMeanWords, self).forward(s[None], n[None], t[None]) for s, n, t in rows], 1
        )


def loss_of(model: Model, batch: Batch) -> Tensor:
    """Something to train on: every word shall be the fourth of the vocabulary."""
    return -logits_of(model, batch)[real_positions(batch)].log_softmax(-1)[:, 3].mean()


def logits_of(model: Model, batch: Batch) -> Tensor:
    """(B, T, V)."""
    return model.project(features_of(model, batch))


def features_of(model: Any, batch: Batch) -> Tensor:
    """(B, T, C)."""
    return model(batch.source_tokens, batch.source_lengths, batch.prev_output_tokens)


def real_positions(batch: Batch) -> Tensor:
    """(B, T) bool, True before the true lengths of the target."""
    return batch.target_tokens != PAD
