"""What every task does: the kind `tasks`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from mtplug.config.schema import RunConfig
from mtplug.data.batching import Batch
from mtplug.data.directions import Directions
from mtplug.data.tokenizers import Tokenizer
from mtplug.data.training import TrainingData
from mtplug.errors import UserError

Report = Callable[[str], None]


class Task(ABC):
    """Turns a run's raw data into training batches, and text into model input.

    Attributes:
        source_tokenizer, target_tokenizer: there after `prepare` or `load`; one object if joint.
        target_lang: code of the language that is written, for scoring.
        languages: codes of source and target, which readers of corpora are given; empty: nothing says them.
        tags: languages that a tag in front of the source chooses between; empty: the task has one direction.
        directions: gives texts their tags, where those say both languages, since the vocabulary has them.
        translates: whether search finds what the model is for, to be scored by metrics; where not,
            validation and test sets get loss and perplexity only.
        loss_of: what the loss of such a task is the mean over, for its signature.
        aligned: whether targets stand for source positions, one each (padding: nothing is learnt there), as
            when tokens are labelled; the architecture must be such a one too.
        sourceless: whether pairs have an empty source.
        heads: ids in front of sources that each piece of one that is split begins with, such as corpora's prefixes; the
            longest first.
        continues: whether text given to a `Translator` is the beginning of the output; there is no
            source then.
        window: texts that follow each other are translated together, so many at most; the tokenizers are
            `mtplug.data.separated.Separated` then.
    """

    translates = True
    loss_of = "token of the run's tokenizer, </s> counted"
    aligned = False
    sourceless = False
    heads: tuple[tuple[int, ...], ...] = ()
    continues = False
    window = 1

    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    target_lang: str = ""
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    directions: Directions | None = None

    def check_data(self, run: RunConfig, report: Report) -> None:  # noqa: B027
        """Before anything is written: `UserError` for what is wrong with the run's data and is soon found."""

    @abstractmethod
    def prepare(self, run: RunConfig, run_dir: Path, report: Report) -> None:
        """Train the tokenizer and write the store below `run_dir`, or reuse what is there."""

    @abstractmethod
    def load(self, run: RunConfig, run_dir: Path) -> None:
        """Only the tokenizer, for translating."""

    @abstractmethod
    def training_data(self, run: RunConfig) -> TrainingData:
        """Batches to train on; after `prepare`."""

    @abstractmethod
    def pairs(self, run: RunConfig, split: str) -> list[tuple[str, list[tuple[str, str]]]]:
        """(label, [(source, reference), …]) for each corpus of `train`, `valid` or `test`; no label comes twice."""

    def units(
        self, run: RunConfig, split: str, parts: list[tuple[str, list[tuple[str, str]]]]
    ) -> list[tuple[str, str]]:
        """What is learnt from all corpora of a split, of which `parts` are the `pairs`: these, unless the task makes others."""
        return concatenated(parts)

    def windows(self, run: RunConfig, split: str) -> list[int]:
        """For each corpus of a split how many of its texts are translated together, at most."""
        return [self.window for _ in getattr(run.data, split)]

    def target_langs(self, run: RunConfig, split: str) -> list[str]:
        """The language that is written, for each corpus of a split."""
        return [self.target_lang for _ in getattr(run.data, split)]

    def references(self, run: RunConfig, split: str) -> list[list[list[str]]]:
        """For each corpus of a split the sets of references beside those of `pairs`, each as long."""
        return [[] for _ in getattr(run.data, split)]

    def address(self, text: str, target_lang: str = "", source_lang: str = "") -> str:
        """A text to translate, with what tells the model which language to write, and where it is told that which one it reads.

        Raises:
            UserError: it cannot write `target_lang`, or is not told `source_lang`.
        """
        not_told(source_lang)
        if target_lang and target_lang != self.target_lang:
            raise UserError(
                f"target language {target_lang}: this run writes {self.target_lang} only"
            )
        return text

    def written_lang(self, text: str) -> str:
        """The language that the translation of an addressed text is to be in."""
        return self.target_lang

    def bare(self, text: str) -> str:
        """The inverse of `address`; metrics that read sources are given what `wording` and the tokenizer's `plain` leave of it."""
        return text

    def wording(self, source: str, prefix: str = "") -> str:
        """The sentence itself, which is what filters look at: a source as its corpus gives it without the corpus'
        `prefix` and, in subclasses, without what else was written into it."""
        return source.removeprefix(f"{prefix.strip()} ") if prefix.strip() else source

    def input_text(self, source: str) -> str:
        """What is made of a text that is to be translated, before it is cut into tokens."""
        return source

    @abstractmethod
    def checksums(self, run: RunConfig) -> dict[str, str]:
        """SHA-256 of every training and validation file."""

    def change(self, batch: Batch, epoch: int) -> Batch:
        """What is learnt of a batch of `pairs`, such as to undo noise; of training data and validation.

        It depends on nothing but the numbers of the sentences and the epoch, which is 0 in validation.
        """
        return batch

    def answer(self, source: list[int], log_probs: Tensor) -> tuple[list[int], list[float]]:
        """Of an aligned task: the ids that are the output, and the log-probability of each.

        Args:
            source: S ids, `</s>` last.
            log_probs: (S, V) of the labels of each position.
        """
        raise NotImplementedError


def not_told(source_lang: str) -> None:
    """Raises `UserError` where a source's language is given to a model that is not told it."""
    if source_lang:
        raise UserError(
            f"source language {source_lang}: this run's model is not told which language it reads; leave it out"
        )


def concatenated(parts: Iterable[tuple[str, list[Any]]]) -> list[Any]:
    """The pairs of all corpora of a split, one after the other."""
    return [pair for _, pairs in parts for pair in pairs]
