"""Beam search.

Each step scores the continuations of every kept prefix, orders them, takes translations that end
from the front of that order and goes on with the best that don't. Subclasses change the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mtplug
from mtplug.architectures.base import Model
from mtplug.data.tokenizers import EOS
from mtplug.registry import choice
from mtplug.search.base import Hypothesis, Request, SearchConfig, SearchStrategy
from mtplug.search.constraints import Constraints
from mtplug.search.coverage import coverage_penalties
from mtplug.search.rules import Rules
from mtplug.search.scoring import in_chunks, log_scores
from mtplug.search.topk import top_tokens


@dataclass
class BeamConfig(SearchConfig):
    """Beam search, with required phrases by dynamic beam allocation (Post and Vilar 2018)."""

    beam: int = 5
    """hypotheses kept at each step"""
    nbest: int = 1
    """translations returned for each sentence; at most `beam`"""
    length_norm: str = choice("average", "gnmt")
    """average: score / length^length_penalty; gnmt: score / ((5 + length) / 6)^length_penalty"""
    length_penalty: float = 1.0
    """0: plain log-probabilities, which favour short translations"""
    coverage_penalty: float = 0.0
    """weight of the coverage penalty on finished translations (Wu et al. 2016, equation 14)"""
    stop: str = choice("full", "first", "bound")
    """when a sentence is done; full: when `beam` hypotheses have ended (with required phrases, which few prefixes
    contain, also when `nbest` have ended and no prefix would beat the worst of them even if the next token ended
    it at no cost); first: when one has; bound: when no prefix can beat the worst of the `nbest` that have ended"""
    terminology: str = ""
    """file of lines `source term <TAB> target term [| other form …]`; where the source term
    occurs, one of the forms must be in the translation"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beam < 1 or not 1 <= self.nbest <= self.beam:
            raise ValueError(
                f"beam {self.beam} and nbest {self.nbest}: nbest must be from 1 to beam"
            )
        rising = self.length_penalty < 0 or self.coverage_penalty
        if self.stop == "bound" and (
            rising or (self.language_model and self.language_model_weight < 0)
        ):
            raise ValueError(
                "stop: bound is exact only for scores that fall: it needs coverage_penalty 0 and no negative "
                "length_penalty or language_model_weight; set stop to full"
            )


@dataclass
class Candidates:
    """Continuations of each sentence's prefixes, best first. All (B, C) but `log_probs`.

    Attributes:
        totals: log-probability of the whole; -inf where there is none.
        parents: which of the K prefixes is continued.
        tokens: by which token.
        steps: log-probability of that token.
    """

    totals: Tensor
    parents: Tensor
    tokens: Tensor
    steps: Tensor

    def pick(self, places: Tensor) -> Candidates:
        """Those at (B, C') places."""
        return Candidates(*(x.gather(1, places) for x in vars(self).values()))

    def rows(self, keep: Tensor) -> Candidates:
        return Candidates(*(x[keep] for x in vars(self).values()))


class BeamSearch(SearchStrategy):
    """Keeps the `beam` most probable prefixes of each sentence; ends are taken from the best
    `beam` continuations, so an end never displaces a better prefix."""

    groups = 1
    """independent beams of each sentence, `beam` / `groups` wide"""

    def __init__(self, config: BeamConfig):
        self.config = config
        self.width = config.beam

    def normalised(self, total: float, length: int) -> float:
        """The score of a hypothesis of `length` tokens, `</s>` counted."""
        c = self.config
        base = (5 + length) / 6 if c.length_norm == "gnmt" else length
        return total / base**c.length_penalty

    def reach(self, beam: int) -> int:
        """Continuations of each prefix that may matter: `beam` that are kept, and an end."""
        return beam + 1

    def order(self, candidates: Candidates, beam: int, groups: Tensor) -> Candidates:
        """At least the candidates that matter, the most wanted first; the 2·beam best do.

        Args:
            candidates: of B groups.
            beam: prefixes kept of each.
            groups: (B,) their numbers, sentence · `groups` + group.
        """
        width = min(2 * beam, candidates.totals.shape[1])
        return candidates.pick(candidates.totals.topk(width).indices)

    @torch.inference_mode()
    def __call__(
        self,
        model: Model,
        source_tokens: Tensor,
        source_lengths: Tensor,
        requests: Sequence[Request] | None = None,
    ) -> list[list[Hypothesis]]:
        beam, device = self.config.beam // self.groups, source_tokens.device
        rules = Rules(self.config, source_lengths, requests, model)
        constraints = Constraints.of(requests, device)
        alive = torch.arange(len(source_tokens) * self.groups, device=device)  # still searched
        found: list[list[Hypothesis]] = [[] for _ in alive]
        state = model.start(source_tokens, source_lengths)
        if self.groups > 1:
            state.reorder(alive // self.groups, (alive // self.groups)[:, None])
        tokens = torch.full((len(alive), 1), EOS, device=device)
        totals = torch.zeros(len(alive), 1, device=device)
        history = torch.empty(len(alive), 1, 0, dtype=torch.long, device=device)
        scores = torch.empty(len(alive), 1, 0, device=device)
        limits = rules.limits.tolist()
        length = 0
        while len(alive):
            length += 1
            width = tokens.shape[1]
            owner = alive // self.groups
            at_limit = rules.at_limit(owner, length)
            logits_RV = model.step(state, tokens).flatten(0, 1)
            owners, past = owner.repeat_interleave(width), history.flatten(0, 1)
            parts = []
            if constraints:
                constraints.begin_step(at_limit, rules.in_prefix(owners, length - 1))
            for part in in_chunks(logits_RV):
                scores_RV = log_scores(model, logits_RV[part])
                if constraints:
                    constraints.apply(scores_RV, part)
                rules.apply(scores_RV, owners[part], past[part])
                made = top_tokens(scores_RV, self.reach(beam))
                parts.append((*made, constraints.wanted(scores_RV, part)) if constraints else made)
            steps, chosen, *wanted = (torch.cat(x) for x in zip(*parts, strict=True))
            candidates = _candidates(steps, chosen, totals)
            if constraints:
                candidates = constraints.order(candidates, wanted[0], totals, beam)
            else:
                candidates = self.order(candidates, beam, alive)

            ends = (candidates.tokens == EOS) & candidates.totals.isfinite()
            rows, ranks = ends[:, :beam].nonzero(as_tuple=True)
            parents = candidates.parents[rows, ranks]
            met = [True] * len(rows)
            if constraints:
                met = constraints.met[rows, parents].all(-1).tolist()
            last = candidates.steps[rows, ranks]
            ended = _hypotheses(
                history[rows, parents], torch.cat([scores[rows, parents], last[:, None]], 1),
                candidates.totals[rows, ranks], ~at_limit[rows], met,
            )  # fmt: skip
            for group, hypothesis in zip(alive[rows].tolist(), ended, strict=True):
                if len(found[group]) < beam:
                    hypothesis.score = self.normalised(hypothesis.score, length)
                    found[group].append(hypothesis)

            follow = _without(ends, candidates, beam)
            going_on = []
            needs = constraints.needs() if constraints else []
            bests = follow.totals.amax(1).tolist()
            for row, (group, best) in enumerate(zip(alive.tolist(), bests, strict=True)):
                if best == -torch.inf and not found[group]:  # the rules leave nothing
                    rest = history[row, 0].tolist()
                    found[group].append(Hypothesis(rest, -torch.inf, [], finished=False))
                end: int | None = None  # the length at which the best prefix may end
                if self.config.stop == "bound":
                    end = limits[group // self.groups]
                elif needs and needs[row]:
                    end = length + 1
                if best > -torch.inf and not self.done(found[group], best, end, beam):
                    going_on.append(row)
            keep = torch.tensor(going_on, dtype=torch.long, device=device)
            follow = follow.rows(keep)
            rows = follow.parents + keep[:, None] * width
            if constraints:
                constraints.advance(keep, rows, follow.tokens)
            history = torch.cat([history.flatten(0, 1)[rows], follow.tokens[..., None]], -1)
            scores = torch.cat([scores.flatten(0, 1)[rows], follow.steps[..., None]], -1)
            alive, tokens, totals = alive[keep], follow.tokens, follow.totals
            if len(alive):
                state.reorder(keep, rows)
        return self.finish(model, source_tokens, source_lengths, found)

    def done(self, found: list[Hypothesis], best: float, end: int | None, beam: int) -> bool:
        """Is a beam finished?

        Args:
            found: what ended.
            best: its best prefix's log-probability.
            end: length at which that prefix is taken to end, without falling further; None: never.
        """
        if len(found) >= beam or (self.config.stop == "first" and found):
            return True
        nbest = min(self.config.nbest, beam)
        if end is None or len(found) < nbest:
            return False
        # At the length limit this is sure: log-probabilities only fall, and nothing is divided by more.
        bound = self.normalised(best, end)
        return sorted((h.score for h in found), reverse=True)[nbest - 1] >= bound

    def finish(
        self,
        model: Model,
        source_tokens: Tensor,
        source_lengths: Tensor,
        found: list[list[Hypothesis]],
    ) -> list[list[Hypothesis]]:
        """The groups of each sentence together, with coverage, sorted and cut to `nbest`."""
        results = []
        for start in range(0, len(found), self.groups):
            merged = [h for group in found[start : start + self.groups] for h in group]
            # groups may arrive at the same translation
            results.append(list({tuple(h.tokens): h for h in reversed(merged)}.values()))
        if self.config.coverage_penalty:
            penalties = coverage_penalties(model, source_tokens, source_lengths, results)
            for hypotheses, row in zip(results, penalties, strict=True):
                for hypothesis, penalty in zip(hypotheses, row, strict=True):
                    hypothesis.score += self.config.coverage_penalty * penalty
        return [self.cut(sorted(row, key=lambda h: (not h.met, -h.score))) for row in results]

    def cut(self, hypotheses: list[Hypothesis]) -> list[Hypothesis]:
        """What is returned of all that ended, best first."""
        return hypotheses[: self.config.nbest]


def _hypotheses(
    tokens: Tensor, steps: Tensor, totals: Tensor, finished: Tensor, met: list[bool]
) -> list[Hypothesis]:
    """E hypotheses of (E, t) tokens; all at once, for each look into a tensor takes its time."""
    columns = (x.tolist() for x in (tokens, totals, steps, finished))
    return [Hypothesis(*row) for row in zip(*columns, met, strict=True)]


def _without(ends: Tensor, candidates: Candidates, beam: int) -> Candidates:
    """The best `beam` continuations that don't end, in their order; totals of -inf where there are fewer."""
    places = torch.arange(ends.shape[1], device=ends.device).expand(*ends.shape)
    dropped = ends | candidates.totals.isinf()
    places = (places + dropped * ends.shape[1]).sort(1).indices[:, :beam]
    found = candidates.pick(places)
    found.totals = found.totals.masked_fill(dropped.gather(1, places), -torch.inf)
    return found


def _candidates(steps: Tensor, chosen: Tensor, totals: Tensor) -> Candidates:
    """Of (B·K, w) continuations, (B, K·w) candidates."""
    sentences, width = totals.shape
    wide = steps.shape[1]
    parents = torch.arange(width, device=steps.device).repeat_interleave(wide)
    sums = totals.flatten()[:, None] + steps
    return Candidates(
        sums.view(sentences, -1),
        parents.expand(sentences, -1),
        chosen.view(sentences, -1),
        steps.view(sentences, -1),
    )


@mtplug.hookimpl
def register_search_strategies(register: Any) -> None:
    register("beam", BeamSearch, BeamConfig)
