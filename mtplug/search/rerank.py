"""Reranking of a beam's n-best list by other models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mtplug
from mtplug.architectures.base import Model
from mtplug.data.separated import SEPARATOR
from mtplug.data.tags import without_tag
from mtplug.errors import UserError
from mtplug.search.base import Hypothesis, existing_run
from mtplug.search.beam import BeamConfig, BeamSearch
from mtplug.search.combine import check_direction, direction
from mtplug.tasks.base import Task


@dataclass
class RerankConfig(BeamConfig):
    """Beam search whose finished hypotheses are reranked by their score and the scores that other runs give them."""

    forward: list[str] = field(default_factory=list)
    """folders of runs that score the translation given the source"""
    forward_weight: float = 1.0
    """of each of their log-probabilities per token"""
    reverse: list[str] = field(default_factory=list)
    """folders of runs of the other direction, which score the source given the translation (the
    noisy channel, Yee et al. 2019)"""
    reverse_weight: float = 0.5
    """of each of their log-probabilities per token"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.forward and not self.reverse:
            raise ValueError("forward and reverse: give at least one run to rerank with")


class Rerank(BeamSearch):
    """`score` is the beam's score plus the weighted opinions."""

    @staticmethod
    def check_files(config: Any) -> None:
        BeamSearch.check_files(config)
        for key in ("forward", "reverse"):
            for path in getattr(config, key):
                existing_run(path, f"search.{key}")

    def __init__(self, config: RerankConfig):
        super().__init__(config)
        self.rerank = config
        self.plain: Callable[[str], str] = str
        self.direction: tuple[str, ...] = ()

    def searched_model(self, model: Model, task: Task) -> Model:
        self.plain = task.source_tokenizer.plain
        self.direction = direction(task)
        return super().searched_model(model, task)

    def cut(self, hypotheses: list[Hypothesis]) -> list[Hypothesis]:
        return hypotheses

    def rank(self, sources: list[str], found: list[list[Any]]) -> list[list[Any]]:
        c = self.rerank
        pairs = [(s, t.text) for s, row in zip(sources, found, strict=True) for t in row]
        if not pairs:
            return found
        totals = [t.score for row in found for t in row]
        for way, paths, weight in (
            ("forward", c.forward, c.forward_weight),
            ("reverse", c.reverse, c.reverse_weight),
        ):
            back = way == "reverse"
            for path in paths:
                scorer = _scorer(path)
                if back and scorer.task.tags:
                    raise UserError(
                        f"search.reverse: {path} has language tags, and nothing says which language the sources are "
                        "in; use a run of one direction"
                    )
                due = self.direction[::-1] if back else self.direction
                check_direction(due, scorer.task, f"search.{way}: {path}")
                if scorer.task.window == 1 and any(SEPARATOR in s for s, _ in pairs):
                    raise UserError(
                        f"search.{way}: {path} knows single sentences only; rerank with runs of "
                        "documents, or translate with task.window=1"
                    )
                # Sources come as the run that translates reads them: with its tag, and what its tokenizer alone reads.
                own = pairs if scorer.task.tags else [(without_tag(s), t) for s, t in pairs]
                reads = None if back else scorer.task.source_tokenizer.plain
                own = [(self._as_read(s, reads), t) for s, t in own]
                given, written = zip(*(p[::-1] if back else p for p in own), strict=True)
                for n, judged in enumerate(scorer.score(given, written, cut=True)):
                    totals[n] += weight * judged.score
        numbers = iter(totals)
        for row in found:
            for translation in row:
                translation.score = next(numbers)
        # As in the beam, what lacks a wish comes behind all that lack none.
        return [sorted(row, key=lambda t: (bool(t.unmet), -t.score))[: c.nbest] for row in found]

    def _as_read(self, source: str, reads: Callable[[str], str] | None) -> str:
        """The words of a source, with what else our tokenizer reads in it where another does, too, of which `reads` leaves the
        words."""
        plain = self.plain(source)
        return source if reads is not None and reads(source) == plain else plain


@functools.cache
def _scorer(path: str) -> Any:
    return mtplug.load(path)


@mtplug.hookimpl
def register_search_strategies(register):
    register("rerank", Rerank, RerankConfig)
