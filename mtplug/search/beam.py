"""Beam search and, as its narrowest case, greedy search.

Shapes: B sentences, K hypotheses of each, V vocabulary, t tokens so far.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import mtplug
from mtplug.architectures.base import Model
from mtplug.data.tokenizers import EOS, PAD
from mtplug.registry import choice


@dataclass
class Hypothesis:
    """One translation found by a search.

    Attributes:
        tokens: ids without `</s>`.
        score: what hypotheses are ranked by.
        token_scores: log-probability of each token, `</s>` last, in nats.
        finished: False if the length limit cut it off before `</s>`.
    """

    tokens: list[int]
    score: float
    token_scores: list[float] = field(default_factory=list)
    finished: bool = True


class SearchStrategy(ABC):
    """Finds translations of a batch under a model."""

    @abstractmethod
    def __call__(
        self, model: Model, source_tokens: Tensor, source_lengths: Tensor
    ) -> list[list[Hypothesis]]:
        """(B, S) and (B,) to the hypotheses of each sentence, best first."""


@dataclass
class LimitConfig:
    """How long a translation may get: `max_ratio` · source tokens + `max_extra`."""

    max_ratio: float = 2.0
    max_extra: int = 20
    """tokens; the greatest length counts `</s>`"""


@dataclass
class BeamConfig(LimitConfig):
    """Beam search. A sentence is finished when `beam` of its hypotheses are."""

    beam: int = 5
    """hypotheses kept at each step"""
    nbest: int = 1
    """translations returned for each sentence; at most `beam`"""
    length_norm: str = choice("average", "gnmt")
    """average: score / length^length_penalty; gnmt: score / ((5 + length) / 6)^length_penalty"""
    length_penalty: float = 1.0
    """0: plain log-probabilities, which favour short translations"""

    def __post_init__(self) -> None:
        if self.beam < 1 or not 1 <= self.nbest <= self.beam:
            raise ValueError(f"beam {self.beam} and nbest {self.nbest}: 1 <= nbest <= beam is due")


class BeamSearch(SearchStrategy):
    """Keeps the `beam` most probable prefixes of each sentence; ends are taken from the best
    `beam` continuations, so an end never displaces a better prefix."""

    def __init__(self, config: BeamConfig):
        self.config: LimitConfig = config
        self.beam = config

    def normalised(self, total: float, length: int) -> float:
        """The score of a hypothesis of `length` tokens, `</s>` counted."""
        c = self.beam
        base = (5 + length) / 6 if c.length_norm == "gnmt" else length
        return total / base**c.length_penalty

    @torch.inference_mode()
    def __call__(
        self, model: Model, source_tokens: Tensor, source_lengths: Tensor
    ) -> list[list[Hypothesis]]:
        beam, device = self.beam.beam, source_tokens.device
        found: list[list[Hypothesis]] = [[] for _ in source_tokens]
        limits = (source_lengths * self.beam.max_ratio).long() + self.beam.max_extra
        alive = torch.arange(len(source_tokens), device=device)  # sentences still searched
        state = model.start(source_tokens, source_lengths)
        tokens = torch.full((len(alive), 1), EOS, device=device)
        totals = torch.zeros(len(alive), 1, device=device)
        history = torch.empty(len(alive), 1, 0, dtype=torch.long, device=device)
        scores = torch.empty(len(alive), 1, 0, device=device)
        length = 0
        while len(alive):
            length += 1
            log_probs = model.step(state, tokens).float().log_softmax(-1)
            log_probs[..., PAD] = -torch.inf
            at_limit = limits[alive] <= length
            if at_limit.any():
                only_end = log_probs[..., EOS].clone()
                log_probs[at_limit] = -torch.inf
                log_probs[..., EOS] = only_end
            vocabulary = log_probs.shape[-1]
            candidates = (totals[:, :, None] + log_probs).flatten(1)
            width = min(2 * beam, candidates.shape[1])
            values, indices = candidates.topk(width)
            parents = indices // vocabulary
            chosen = indices % vocabulary
            steps = log_probs.flatten(1).gather(1, indices)

            ends = (chosen == EOS) & values.isfinite()
            ends[:, beam:] = False
            for row, rank in ends.nonzero().tolist():
                sentence = int(alive[row])
                if len(found[sentence]) >= beam:
                    continue
                parent = int(parents[row, rank])
                found[sentence].append(
                    Hypothesis(
                        history[row, parent].tolist(),
                        self.normalised(float(values[row, rank]), length),
                        [*scores[row, parent].tolist(), float(steps[row, rank])],
                        finished=not bool(at_limit[row]),
                    )
                )

            # The best `beam` continuations that don't end, in their order.
            values = values.masked_fill(chosen == EOS, -torch.inf)
            totals, ranks = values.sort(dim=1, descending=True, stable=True)
            totals, ranks = totals[:, :beam], ranks[:, :beam]
            going_on = [
                row
                for row, (sentence, best) in enumerate(
                    zip(alive.tolist(), totals[:, 0].tolist(), strict=True)
                )
                if len(found[sentence]) < beam and best > -torch.inf
            ]
            keep = torch.tensor(going_on, dtype=torch.long, device=device)
            totals, ranks = totals[keep], ranks[keep]
            parents, chosen, steps = (x[keep].gather(1, ranks) for x in (parents, chosen, steps))
            rows = parents + keep[:, None] * history.shape[1]
            history = torch.cat([history.flatten(0, 1)[rows], chosen[..., None]], -1)
            scores = torch.cat([scores.flatten(0, 1)[rows], steps[..., None]], -1)
            alive, tokens = alive[keep], chosen
            if len(alive):
                state.reorder(keep, rows)
        for hypotheses in found:
            hypotheses.sort(key=lambda h: -h.score)
            del hypotheses[self.beam.nbest :]
        return found


@dataclass
class GreedyConfig(LimitConfig):
    """The most probable token at each step."""


class Greedy(BeamSearch):
    """Beam search with a beam of one."""

    def __init__(self, config: GreedyConfig):
        super().__init__(BeamConfig(config.max_ratio, config.max_extra, beam=1))
        self.config = config


@mtplug.hookimpl
def register_search_strategies(register: Any) -> None:
    register("beam", BeamSearch, BeamConfig)
    register("greedy", Greedy, GreedyConfig)
