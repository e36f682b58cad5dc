"""Sampling translations, and minimum Bayes risk decoding over samples."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mtplug
from mtplug.search.base import SearchConfig
from mtplug.search.stepwise import Stepwise
from mtplug.search.utility import chrf_matrix


@dataclass
class SamplingConfig(SearchConfig):
    """Tokens are drawn from the model's distribution, restricted by the filters."""

    nbest: int = 1
    """samples of each sentence, drawn independently"""
    temperature: float = 1.0
    """log-probabilities are divided by it"""
    top_k: int = 0
    """draw among this many most probable tokens (Fan et al. 2018); 0: all"""
    top_p: float = 1.0
    """draw among the most probable tokens that together have this probability (Holtzman et al. 2020)"""
    epsilon: float = 0.0
    """draw among tokens of at least this probability (Hewitt et al. 2022); 0.02 does well for MBR"""
    seed: int = 1
    """a sentence's samples depend on this and the sentence alone, whatever else is in the batch"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, fine, due in (
            ("nbest", self.nbest >= 1, "at least 1"),
            ("temperature", self.temperature > 0, "more than 0"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("epsilon", 0 <= self.epsilon < 1, "0 or more, less than 1"),
        ):
            if not fine:
                raise ValueError(f"{name} must be {due}, not {getattr(self, name)}")


class Sampling(Stepwise):
    """Independent samples; `score` is the mean log-probability under the unfiltered model."""

    name = "sampling"

    def __init__(self, config: SamplingConfig):
        super().__init__(config)
        self.sampling = config
        self.width = config.nbest

    def begin(self, source_tokens: Tensor, source_lengths: Tensor) -> None:
        # Each row's random numbers depend on seed, sentence and sample alone, so that batches
        # may be formed anyhow. A text that is continued has no source, and is the prefix itself.
        given = [
            row[:n] for row, n in zip(source_tokens.tolist(), source_lengths.tolist(), strict=True)
        ]
        if self.requests is not None:
            pairs = zip(given, self.requests, strict=True)
            given = [ids if len(ids) > 1 else [*ids, *r.prefix] for ids, r in pairs]
        self.streams = [
            np.random.Generator(np.random.Philox(key=[self.sampling.seed, _key(ids, k)]))
            for ids in given
            for k in range(self.width)
        ]

    def choose(self, scores_RV: Tensor, rows: Tensor, step: int, forced: Tensor | None) -> Tensor:
        draws = torch.tensor([self.streams[r].random() for r in rows.tolist()], dtype=torch.float64)
        probabilities = self.probabilities(scores_RV)
        # The inverse of the distribution function, in float64: float32 sums of 32,000 small
        # probabilities are off by more than the smallest of them.
        sums = probabilities.double().cumsum(-1)
        marks = draws.to(sums.device)[:, None] * sums[:, -1:]
        chosen = torch.searchsorted(sums, marks, right=True)[:, 0]
        return chosen.clamp(max=scores_RV.shape[1] - 1)

    def probabilities(self, scores_RV: Tensor) -> Tensor:
        """(R, V), what tokens are drawn from; not normalised."""
        c = self.sampling
        p = (scores_RV / c.temperature).softmax(-1)
        best = p.amax(-1, keepdim=True)  # no filter leaves nothing
        if c.epsilon:
            p = p.masked_fill((p < c.epsilon) & (p < best), 0)
        if 0 < c.top_k < p.shape[1]:
            values, indices = p.topk(c.top_k)
            p = torch.zeros_like(p).scatter(1, indices, values)
        if c.top_p < 1:
            values, indices = p.sort(-1, descending=True)
            before = values.cumsum(-1) - values
            values = values.masked_fill(before >= c.top_p * values.sum(-1, keepdim=True), 0)
            p = torch.zeros_like(p).scatter(1, indices, values)
        return p


def _key(ids: list[int], sample: int) -> int:
    return (zlib.crc32(np.array(ids, np.int64).tobytes()) << 20) + sample


@dataclass
class MbrConfig(SamplingConfig):
    """Minimum Bayes risk: the sample that is on average most like the others, by chrF."""

    samples: int = 32
    """drawn for each sentence; they are the candidates and the pseudo-references"""
    epsilon: float = 0.02
    """draw among tokens of at least this probability (Hewitt et al. 2022; Freitag et al. 2023)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2 or self.nbest > self.samples:
            raise ValueError(f"samples must be at least 2 and at least nbest, not {self.samples}")


class MinimumBayesRisk(Sampling):
    """Eikema and Aziz (2020); the utility is chrF2. `score` is the expected utility, 0 to 100."""

    name = "mbr"

    def __init__(self, config: MbrConfig):
        super().__init__(config)
        self.mbr = config
        self.width = config.samples

    def rank(self, sources: list[str], found: list[list[Any]]) -> list[list[Any]]:
        return [self._by_utility(translations) for translations in found]

    def _by_utility(self, translations: list[Any]) -> list[Any]:
        counts = Counter(t.text for t in translations)
        texts = list(counts)
        weights = np.array([counts[text] for text in texts], np.float64)
        utility = chrf_matrix(texts) @ (weights / weights.sum())
        first = {t.text: t for t in reversed(translations)}
        for text, value in zip(texts, utility.tolist(), strict=True):
            first[text].score = value
        best = np.argsort(-utility, kind="stable")[: self.mbr.nbest]
        return [first[texts[i]] for i in best]


@mtplug.hookimpl
def register_search_strategies(register):
    register("sampling", Sampling, SamplingConfig)
    register("mbr", MinimumBayesRisk, MbrConfig)
