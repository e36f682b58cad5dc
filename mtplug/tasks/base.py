"""What every task does: the kind `tasks`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mtplug.config.schema import RunConfig
from mtplug.data.tokenizers import Tokenizer
from mtplug.data.training import TrainingData

Report = Callable[[str], None]


class Task(ABC):
    """Turns a run's raw data into training batches, and text into model input.

    Attributes:
        source_tokenizer, target_tokenizer: there after `prepare` or `load`; one object if joint.
        target_lang: code of the language that is written, for scoring.
        translates: whether search finds what the model is for, to be scored by metrics; where not,
            validation and test sets get loss and perplexity only.
        continues: whether text given to a `Translator` is the beginning of the output; there is no
            source then.
    """

    translates = True
    continues = False

    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    target_lang: str = ""

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
        """(label, [(source, reference), …]) for each corpus of `train`, `valid` or `test`."""

    def input_text(self, source: str) -> str:
        """What is made of a text that is to be translated, before it is cut into tokens."""
        return source

    @abstractmethod
    def checksums(self, run: RunConfig) -> dict[str, str]:
        """SHA-256 of every training and validation file."""


def concatenated(parts: Iterable[tuple[str, list[Any]]]) -> list[Any]:
    """The pairs of all corpora of a split, one after the other."""
    return [pair for _, pairs in parts for pair in pairs]
