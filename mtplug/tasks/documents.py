"""Translation of documents: sentences together with their neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mtplug
from mtplug.config.base import base_folder
from mtplug.config.build import load_resolved
from mtplug.config.schema import RunConfig
from mtplug.data.corpora import Corpus, View, has_text
from mtplug.data.encoding import too_long
from mtplug.data.separated import SEPARATOR, Separated, together, windows
from mtplug.data.tokenizers import Tokenizer
from mtplug.errors import UserError
from mtplug.registry import require_range
from mtplug.tasks.base import Report
from mtplug.tasks.translation import Transformed, Translation, TranslationConfig

STRETCH = 4096
"""Sentences of a document that are in memory at once; a longer one is cut behind so many."""


@dataclass
class DocumentsConfig(TranslationConfig):
    """Translation of sentences together with those around them, as one text (Tiedemann and Scherrer 2017).

    The sentences of a corpus belong together in their order; an empty line ends a document. The vocabulary gets
    `<sep>`, which stands between sentences."""

    window: int = 4
    """sentences that are translated together, at most, and fewer where they have more than data.max_length tokens;
    learnt from are windows of 1, 2, 4 and so on up to it (Sun et al. 2022)"""

    def __post_init__(self) -> None:
        require_range(self, 1, 1024, "window")


class Documents(Translation):
    """Windows of consecutive sentences, of several sizes in training, of the largest in translation."""

    config: DocumentsConfig

    def __init__(self, config: DocumentsConfig):
        super().__init__(config)
        self.window = config.window

    def makes(self) -> str:
        return f"{super().makes()} {self.window}"

    def check_data(self, run: RunConfig, report: Report) -> None:
        base = base_folder(Path(run.training.finetune_from)) if run.training.finetune_from else None
        if base is not None and not isinstance(
            load_resolved(base / "config.yaml").task.build(), Documents
        ):
            raise UserError(
                f"task documents: the base {base} has no {SEPARATOR} in its vocabulary; start from its weights: "
                f"training.init_from={base} tokenizer.model={base} instead of training.finetune_from"
            )
        super().check_data(run, report)

    def load(self, run: RunConfig, run_dir: Path) -> None:
        super().load(run, run_dir)
        joint = self.target_tokenizer is self.source_tokenizer
        self.source_tokenizer = Separated(self.source_tokenizer)
        self.target_tokenizer = self.source_tokenizer if joint else Separated(self.target_tokenizer)

    def corpora(self, run: RunConfig, split: str) -> list[Corpus]:
        found = super().corpora(run, split)
        return [Ended(corpus) if corpus.config.documents else corpus for corpus in found]

    def windows(self, run: RunConfig, split: str) -> list[int]:
        return [self.window if c.config.documents else 1 for c in getattr(run.data, split)]

    def joined(self, corpus: Corpus, run: RunConfig) -> Corpus:
        sizes = [self.window]
        while sizes[0] > 1:
            sizes.insert(0, sizes[0] // 2)
        return self._windows(corpus, run, sizes)

    def units(
        self, run: RunConfig, split: str, parts: list[tuple[str, list[tuple[str, str]]]]
    ) -> list[tuple[str, str]]:
        """Windows of the largest size."""
        found: list[tuple[str, str]] = []
        for corpus, language in zip(
            self.corpora(run, split), self.target_langs(run, split), strict=True
        ):
            whole = Transformed(corpus, self.transform)
            found += self._addressed(self._windows(whole, run, [self.window]), language)
        return found

    def _windows(self, corpus: Corpus, run: RunConfig, sizes: list[int]) -> Corpus:
        if not corpus.config.documents:
            return corpus
        tokenizers = (self.source_tokenizer, self.target_tokenizer)
        # A language tag takes a place, too, or one for each language that it says.
        tags = 2 if self.directions else int(bool(self.tags))
        strict = run.data.on_long == "error"
        return Windows(corpus, tokenizers, sizes, run.data.max_length, tags, strict=strict)


class Ended(View):
    """A corpus with a pair of empty lines wherever it tells that another document begins."""

    def __iter__(self) -> Iterator[tuple[str, str]]:
        before = None
        for pair in self.corpus:
            if before is not None and self.document != before:
                yield "", ""
            before = self.document
            yield pair


class Windows(View):
    """Windows of a corpus, as pairs of text with separators; sentences with an empty side are left out.

    Args:
        corpus: of sentences; a pair of empty lines ends a document.
        tokenizers: of source and target.
        sizes: sentences of a window, at most, the smallest first; each sentence is in a window of each size.
        limit: tokens of a window on either side, at most; a longer sentence stands by itself.
        tags: how many of them a source has in front, which are still to come.
        strict: a longer sentence is an error.

    Raises:
        BadPair: as `strict` says.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizers: tuple[Tokenizer, Tokenizer],
        sizes: list[int],
        limit: int,
        tags: int = 0,
        strict: bool = False,
    ):
        super().__init__(corpus)
        self.tokenizers, self.sizes = tokenizers, sizes
        self.limit, self.tags, self.strict = limit, tags, strict

    def __iter__(self) -> Iterator[tuple[str, str]]:
        document: list[tuple[str, str]] = []
        numbers: list[int] = []  # of its pairs in the corpus
        for number, (source, target) in enumerate(self.corpus, 1):
            ended = not has_text((source, target))
            if source.strip() and target.strip():
                document.append((source, target))
                numbers.append(number)
            if document and (ended or len(document) == STRETCH):
                yield from self._of(document, numbers)
                document, numbers = [], []
        yield from self._of(document, numbers)

    def _of(self, document: list[tuple[str, str]], numbers: list[int]) -> Iterator[tuple[str, str]]:
        sides = [
            map(len, tokenizer.encode([pair[side] for pair in document]))
            for side, tokenizer in enumerate(self.tokenizers)
        ]
        lengths = list(zip(*sides, strict=True))
        for number, (source_size, target_size), pair in zip(
            numbers, lengths, document, strict=True
        ):
            told = source_size + self.tags, target_size
            if self.strict and max(told) > self.limit:
                raise too_long(number, told, self.limit, pair)
        limit = self.limit - self.tags
        seen = set()
        for size in self.sizes:
            for window in windows(lengths, [0] * len(lengths), size, limit):
                place = window[0], window[-1]
                if place in seen:  # of a document that smaller windows hold
                    continue
                seen.add(place)
                source, target = zip(*(document[n] for n in window), strict=True)
                yield together(source), together(target)


@mtplug.hookimpl
def register_tasks(register):
    register("documents", Documents, DocumentsConfig)
