"""Strategies whose hypotheses don't compete: greedy search, sampling, alternatives.

Every hypothesis is a row of its own that leaves the batch when it ends.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import mtplug
from mtplug.architectures.base import Model
from mtplug.data.tokenizers import EOS
from mtplug.search.base import Hypothesis, Request, SearchConfig, SearchStrategy, refuse_required
from mtplug.search.rules import Rules
from mtplug.search.scoring import log_scores
from mtplug.search.topk import top_tokens


class Stepwise(SearchStrategy):
    """The loop; subclasses say how the next token is chosen.

    Each batch is searched by a copy, whose attributes are that batch's own: threads may share a strategy.

    Attributes:
        requests: of the batch's sentences, if there are any.
    """

    name = ""
    requests: Sequence[Request] | None = None

    def __init__(self, config: SearchConfig):
        self.config = config

    @abstractmethod
    def choose(self, scores_RV: Tensor, rows: Tensor, step: int, forced: Tensor | None) -> Tensor:
        """(R,) next tokens.

        Args:
            scores_RV: log-probabilities, -inf where `Rules` forbid; not to be changed.
            rows: (R,) numbers that the rows had at the start, sentence · width + hypothesis.
            step: counted from 0.
            forced: (R,) bool, rows that a prefix leaves no choice; None if none.
        """

    def begin(self, source_tokens: Tensor, source_lengths: Tensor) -> None:
        """Called with each batch before its first step."""

    def __call__(
        self,
        model: Model,
        source_tokens: Tensor,
        source_lengths: Tensor,
        requests: Sequence[Request] | None = None,
    ) -> list[list[Hypothesis]]:
        refuse_required(requests, self.name)
        own = copy.copy(self)
        own.requests = requests
        return own._searched(model, source_tokens, source_lengths)

    @torch.inference_mode()
    def _searched(
        self, model: Model, source_tokens: Tensor, source_lengths: Tensor
    ) -> list[list[Hypothesis]]:
        self.begin(source_tokens, source_lengths)
        rules = Rules(self.config, source_lengths, self.requests, model)
        sentences, device = len(source_tokens), source_tokens.device
        rows = torch.arange(sentences * self.width, device=device)
        state = model.start(source_tokens, source_lengths)
        if self.width > 1:  # the source is read once, then each hypothesis goes its own way
            state.reorder(rows // self.width, (rows // self.width)[:, None])
        found: list[Hypothesis | None] = [None] * len(rows)
        tokens = torch.full((len(rows), 1), EOS, device=device)
        history = torch.empty(len(rows), 0, dtype=torch.long, device=device)
        scores = torch.empty(len(rows), 0, device=device)
        while len(rows):
            scores_RV = log_scores(model, model.step(state, tokens)[:, 0])
            owner = rows // self.width
            at_limit = rules.at_limit(owner, history.shape[1] + 1)
            rules.apply(scores_RV, owner, history)
            forced = rules.in_prefix(owner, history.shape[1])
            chosen = self.choose(scores_RV, rows, history.shape[1], forced)
            steps = scores_RV.gather(1, chosen[:, None])[:, 0]
            scores = torch.cat([scores, steps[:, None]], 1)
            ended = chosen == EOS
            for place in ended.nonzero()[:, 0].tolist():
                values, row = scores[place].tolist(), int(rows[place])
                found[row] = Hypothesis(
                    history[place].tolist(), self.score(values, row), values,
                    finished=not bool(at_limit[place]),
                )  # fmt: skip
            history = torch.cat([history, chosen[:, None]], 1)
            tokens = chosen[:, None]
            if ended.any():
                keep = (~ended).nonzero()[:, 0]
                rows, history, scores, tokens = (x[keep] for x in (rows, history, scores, tokens))
                if len(rows):
                    state.reorder(keep, keep[:, None])
        results = [h for h in found if h is not None]
        return [
            self.sorted(results[n * self.width : (n + 1) * self.width]) for n in range(sentences)
        ]

    def score(self, token_scores: list[float], row: int) -> float:
        """Of the hypothesis that had number `row` at the start."""
        return sum(token_scores) / len(token_scores)

    def sorted(self, hypotheses: list[Hypothesis]) -> list[Hypothesis]:
        """What is given back of a sentence's hypotheses, best first."""
        return sorted(hypotheses, key=lambda h: -h.score)


@dataclass
class GreedyConfig(SearchConfig):
    """The most probable token at each step."""


class Greedy(Stepwise):
    """Beam search with a beam of one."""

    name = "greedy"

    def choose(self, scores_RV: Tensor, rows: Tensor, step: int, forced: Tensor | None) -> Tensor:
        return scores_RV.argmax(-1)


@dataclass
class AlternativesConfig(SearchConfig):
    """The most probable next tokens after the forced prefix, each completed greedily."""

    nbest: int = 5
    """alternatives"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nbest < 1:
            raise ValueError(f"nbest {self.nbest}: at least 1")


class Alternatives(Stepwise):
    """What could stand where a forced prefix ends; `score` is that token's log-probability. Of a text that is split,
    the other pieces have their best."""

    name = "alternatives"

    def __init__(self, config: AlternativesConfig):
        super().__init__(config)
        self.width = config.nbest

    def begin(self, source_tokens: Tensor, source_lengths: Tensor) -> None:
        self.branched = torch.full((len(source_tokens),), -1)  # at which step

    def choose(self, scores_RV: Tensor, rows: Tensor, step: int, forced: Tensor | None) -> Tensor:
        chosen = scores_RV.argmax(-1)
        owner = rows // self.width
        now = (self.branched < 0).to(rows.device)[owner]
        if forced is not None:
            now &= ~forced
        if now.any():
            places = now.nonzero()[:, 0]
            tokens = top_tokens(scores_RV[places], self.width)[1]
            ranks = rows[places] % self.width
            # Fewer tokens than alternatives: the last stands for the rest, which `sorted` drops.
            chosen[places] = tokens.gather(1, ranks.clamp(max=tokens.shape[1] - 1)[:, None])[:, 0]
            self.branched[owner[places].cpu()] = step
        return chosen

    def score(self, token_scores: list[float], row: int) -> float:
        return token_scores[int(self.branched[row // self.width])]

    def of_pieces(self, found: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
        # The prefix ends in the first piece.
        first, *rest = found
        best = [hypotheses[0] for hypotheses in rest]
        return [[h, *(replace(one, score=h.score) for one in best)] for h in first]

    def sorted(self, hypotheses: list[Hypothesis]) -> list[Hypothesis]:
        distinct = {tuple(h.tokens): h for h in reversed(hypotheses) if h.score > -math.inf}
        return super().sorted(list(distinct.values()))


@mtplug.hookimpl
def register_search_strategies(register):
    register("greedy", Greedy, GreedyConfig)
    register("alternatives", Alternatives, AlternativesConfig)
