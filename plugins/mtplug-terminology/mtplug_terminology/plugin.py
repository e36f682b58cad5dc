"""Glossaries through inline tags (Dinu et al. 2019, ACL P19-1294, "append"): corpus, task and metric.

In training, some terms of some sentences are followed by their translation in tags, where the reference has
it: "a <term> dog <target> Hund </term> runs". The model learns to copy it, whatever it is, so that when
translating, a glossary that it never saw is followed. Dinu et al. mark words with source factors; the
tags say the same in the text itself, and any tokenizer and architecture take them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mtplug
from mtplug.data.corpora import existing_file
from mtplug.data.corpora.text import Text, TextConfig
from mtplug.data.tokenizers import UNK
from mtplug.errors import UserError
from mtplug.evaluation import Metric, Score
from mtplug.search import WordPattern
from mtplug.tasks.translation import Translation, TranslationConfig
from mtplug_terminology.glossary import BEGIN, TAGS, Glossary, tagged, untagged

MTPLUG_API = {"corpora": 1, "tasks": 1, "metrics": 1}


# --- training data ----------------------------------------------------------------------------


@dataclass
class GlossaryConfig(TextConfig):
    """Two plain text files; some terms of the source are followed by their translation in tags."""

    glossary: str = ""
    """file of lines `source term <TAB> target term [| other form …]`"""
    share: float = 0.5
    """of the sentences in which a term could be tagged, how many are"""
    max_terms: int = 3
    """tagged in one sentence, at most"""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.max_terms < 1:
            raise ValueError("share must be from 0 to 1, and max_terms at least 1")


class GlossaryText(Text):
    """What is tagged depends on the texts alone, so every reading gives the same pairs."""

    config: GlossaryConfig

    def files(self) -> list[Path]:
        c = self.config
        return [*super().files(), existing_file(c.glossary, c.root, "corpus: glossary")]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        *_, path = self.files()
        glossary = Glossary.read(path)
        reader = Text(self.config, self.languages)
        for source, target in reader:
            yield self._tagged(glossary, source, target), target
            self.bad_lines = reader.bad_lines
        self.bad_lines = reader.bad_lines

    def _tagged(self, glossary: Glossary, source: str, target: str) -> str:
        if _draw(source, target) >= self.config.share:
            return source
        terms = glossary.found(source, target)
        terms.sort(key=lambda t: _draw(source, target, t.start))
        return tagged(source, terms[: self.config.max_terms])


def _draw(*of: Any) -> float:
    """A number from 0 to 1 that looks random, the same for the same texts."""
    digest = hashlib.sha256("\0".join(map(str, of)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


# --- translating ------------------------------------------------------------------------------


@dataclass
class TerminologyConfig(TranslationConfig):
    """Translation by a model that was trained with tagged terms, which a glossary may then ask for."""

    glossary: str = ""
    """for translating with a trained run: file of terms that are tagged in its input, the first form
    of each; text that has tags already is left as it is"""


class Terminology(Translation):
    """Raises `UserError` where a glossary is given in training, which the corpora have."""

    config: TerminologyConfig
    glossary: Glossary | None = None

    def prepare(self, run: Any, run_dir: Path, report: Callable[[str], None]) -> None:
        if self.config.glossary:
            raise UserError(
                "task.glossary: is for translating; in training it belongs to data.train, as "
                "{name: glossary, glossary: FILE, source: …, target: …}"
            )
        super().prepare(run, run_dir, report)
        if unknown := self._unknown():
            report(
                f"tokenizer: the source's vocabulary lacks {unknown}, so the model cannot tell the tags of terms apart; "
                f"train with tokenizer.user_symbols='[{', '.join(TAGS)}]', without training.finetune_from"
            )

    def load(self, run: Any, run_dir: Path) -> None:
        super().load(run, run_dir)
        if not self.config.glossary:
            return
        if unknown := self._unknown():
            raise UserError(
                f"task.glossary: the vocabulary of {run_dir} lacks {unknown}, so its model cannot follow the glossary; "
                f"search.terminology={self.config.glossary} needs no tags"
            )
        self.glossary = Glossary.read(self.config.glossary, "task.glossary")

    def _unknown(self) -> str:
        cut = self.source_tokenizer.encode([*TAGS])
        return " ".join(tag for tag, ids in zip(TAGS, cut, strict=True) if UNK in ids)

    def input_text(self, source: str) -> str:
        if self.glossary is None or BEGIN in source:
            return source
        return tagged(source, self.glossary.terms(source))

    def wording(self, source: str, prefix: str = "") -> str:
        return untagged(super().wording(source, prefix))


# --- scoring ----------------------------------------------------------------------------------


@dataclass
class AccuracyConfig:
    """Share of a glossary's terms whose translation stands in the output, in percent."""

    label: str = "terminology_accuracy"
    """its name in logs"""
    glossary: str = ""
    """file of lines `source term <TAB> target term [| other form …]`"""
    source: str = ""
    """not read, since what was translated is known; runs that were begun when it was needed still name it"""


class TerminologyAccuracy(Metric):
    """Of the terms in the sources, tags left out: whole words, whatever their case; any form will do."""

    takes_sources = True

    def __init__(self, config: AccuracyConfig, target_lang: str):
        if not config.glossary:
            raise UserError("metric terminology_accuracy: no glossary is given")
        self.label = config.label
        self.glossary = Glossary.read(config.glossary, "metric terminology_accuracy: glossary")
        self.digest = hashlib.sha256(Path(config.glossary).read_bytes()).hexdigest()[:8]

    def statistics(
        self, hypotheses: list[str], references: list[list[str]], sources: list[str] | None = None
    ) -> tuple[np.ndarray, Callable[[np.ndarray], float]]:
        """Terms that are there and terms that are due, by sentence.

        Raises:
            UserError: there are no sources.
        """
        if sources is None:
            raise UserError("metric terminology_accuracy needs the source text")
        rows = []
        for text, source in zip(hypotheses, sources, strict=True):
            terms = self.glossary.terms(untagged(source))
            hits = sum(any(_word(form).search(text) for form in term.forms) for term in terms)
            rows.append((hits, len(terms)))
        table = np.array(rows, float).reshape(-1, 2)
        return table, lambda total: float(100 * total[0] / max(total[1], 1))

    def score(
        self, hypotheses: list[str], references: list[list[str]], sources: list[str] | None = None
    ) -> Score:
        rows, compute = self.statistics(hypotheses, references, sources)
        hits, due = rows.sum(0).astype(int)
        value = compute(rows.sum(0))
        signature = f"terms:source|case:any|glossary:{self.digest}|version:1"
        text = f"terminology accuracy = {value:.2f} ({hits} of {due} terms)"
        return Score(self.label, value, signature, text)


def _word(form: str) -> WordPattern:
    return WordPattern(form, re.IGNORECASE)


@mtplug.hookimpl
def register_corpora(register):
    register("glossary", GlossaryText, GlossaryConfig)


@mtplug.hookimpl
def register_tasks(register):
    register("terminology", Terminology, TerminologyConfig)


@mtplug.hookimpl
def register_metrics(register):
    register("terminology_accuracy", TerminologyAccuracy, AccuracyConfig)
