"""Labels of sentences and of their words, by an encoder with a head."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import mtplug
from mtplug.config.schema import RunConfig
from mtplug.data.batching import Batch, collate_aligned, sentences
from mtplug.data.corpora import Corpus
from mtplug.data.labels import FIRST, Labels
from mtplug.data.tokenizers import PAD
from mtplug.data.words import WordByWord, separated
from mtplug.errors import UserError
from mtplug.tasks.base import Report
from mtplug.tasks.translation import Translation


@dataclass
class ClassificationConfig:
    """A label for each text: corpora have the text as source and the label as target, such as
    `{name: tsv, path: FILE}` with text, tab, label. Goes with criterion.smoothing=0."""

    source_lang: str = ""
    """code of the language"""


class Classification(Translation):
    """The label is told at the text's `</s>`; blanks in it become `_`."""

    aligned = True
    divisible = False
    """whether the pieces of a text have labels of their own"""
    config: Any

    def __init__(self, config: ClassificationConfig):
        self.config = config
        self.languages = (config.source_lang, "labels")

    def transform(self, source: str, target: str) -> tuple[str, str]:
        return source, "_".join(target.split())

    def change(self, batch: Batch, epoch: int) -> Batch:
        texts, labels = sentences(batch, "source"), sentences(batch, "target")
        rows = [
            np.append(np.full(len(t), PAD), own[:1]) for t, own in zip(texts, labels, strict=True)
        ]
        return collate_aligned(texts, rows, batch.ids)

    def answer(self, source: list[int], log_probs: Tensor) -> tuple[list[int], list[float]]:
        return _best(log_probs[-1:])

    # --- vocabularies -----------------------------------------------------------------------------

    def _sides(self, joint: bool) -> list[tuple[str, tuple[int, ...]]]:
        return [("joint" if joint else "source", (0,))]

    def prepare(self, run: RunConfig, run_dir: Path, report: Report) -> None:
        if run.data.on_long == "split":
            raise UserError(
                "data.on_long: labels cannot be split; set it to truncate, skip or error"
            )
        super().prepare(run, run_dir, report)

    def _tokenizers(
        self,
        run: RunConfig,
        folder: Path,
        corpora: list[Corpus],
        sums: list[list[str]],
        report: Report,
    ) -> None:
        super()._tokenizers(run, folder, corpora, sums, report)
        if not (folder / "labels.json").is_file():
            pairs = itertools.chain(*corpora)
            labels = Labels.train(self.transform(*pair)[1] for pair in pairs)
            report(f"labels: {len(labels) - FIRST} different ones")
            labels.save(folder, "labels")
        self.target_tokenizer = Labels.load(folder, "labels")

    def load(self, run: RunConfig, run_dir: Path) -> None:
        if run.data.on_long == "split" and not self.divisible:
            raise UserError(
                "data.on_long: a text has one label, and its pieces would have several; set it to truncate, skip or error"
            )
        factory, folder = run.tokenizer.build(), run_dir / "tokenizer"
        self.source_tokenizer = factory.load(folder, "joint" if factory.joint else "source")
        # They come after the tokenizer, with which `load` is called.
        if (folder / "labels.json").is_file():
            self.target_tokenizer = Labels.load(folder, "labels")


@dataclass
class TaggingConfig(ClassificationConfig):
    """A label for each word: corpora have the words as source and the labels as target, both separated by
    blanks, and as many of them. Goes with criterion.smoothing=0."""


class Tagging(Classification):
    """A word's label is told at its first piece, which `word_starts` finds by its written form."""

    divisible = True

    def transform(self, source: str, target: str) -> tuple[str, str]:
        words, labels = separated(source), separated(target)
        if len(words) != len(labels):
            other = len(source.split()) == len(target.split())
            why = " (only blanks and tabs separate them, and no U+00A0 or U+3000)" if other else ""
            raise UserError(
                f"task tagging: '{source[:60]}' has {len(words)} words, its labels "
                f"'{target[:60]}' are {len(labels)}; each word needs one{why}"
            )
        return " ".join(words), " ".join(labels)

    def load(self, run: RunConfig, run_dir: Path) -> None:
        super().load(run, run_dir)
        self.source_tokenizer = WordByWord(self.source_tokenizer)
        self.starts = self.source_tokenizer.starts

    def change(self, batch: Batch, epoch: int) -> Batch:
        texts, labels = sentences(batch, "source"), sentences(batch, "target")
        rows = []
        for text, own, number in zip(texts, labels, batch.ids.tolist(), strict=True):
            (places,) = np.nonzero(self.starts[text])
            if len(places) > len(own):  # fewer are left where a long text was cut
                raise UserError(
                    f"task tagging: sentence {number + 1} has {len(own)} labels, but the tokenizer finds "
                    f"{len(places)} words in it; use one that begins a piece where a word begins, and only there"
                )
            row = np.full(len(text), PAD)
            row[places] = own[: len(places)]
            rows.append(row)
        return collate_aligned(texts, rows, batch.ids)

    def answer(self, source: list[int], log_probs: Tensor) -> tuple[list[int], list[float]]:
        return _best(log_probs[np.nonzero(self.starts[source])[0]])


def _best(log_probs_NV: Tensor) -> tuple[list[int], list[float]]:
    scores, ids = log_probs_NV[:, FIRST:].max(-1)
    return (ids + FIRST).tolist(), scores.tolist()


@mtplug.hookimpl
def register_tasks(register):
    register("classification", Classification, ClassificationConfig)
    register("tagging", Tagging, TaggingConfig)
