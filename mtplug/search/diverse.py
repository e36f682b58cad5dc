"""Diverse beam search (Vijayakumar et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import mtplug
from mtplug.architectures.base import Model
from mtplug.data.tokenizers import EOS
from mtplug.search.base import Hypothesis, Request, refuse_required
from mtplug.search.beam import BeamConfig, BeamSearch, Candidates


@dataclass
class DiverseBeamConfig(BeamConfig):
    """Beam search in groups, each discouraged from the tokens that earlier groups chose."""

    groups: int = 5
    """must divide `beam`"""
    diversity: float = 0.5
    """subtracted from a token's log-probability for each hypothesis of an earlier group that chose it at
    the same step (Hamming diversity)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 1 or self.beam % self.groups:
            raise ValueError(f"{self.groups} groups do not divide a beam of {self.beam}")
        if self.terminology:
            raise ValueError(
                "terminology: diverse_beam cannot promise required phrases; use search.name=beam"
            )


class DiverseBeam(BeamSearch):
    """Hypotheses are ranked by the model alone; diversity only steers which are found."""

    def __init__(self, config: DiverseBeamConfig):
        super().__init__(config)
        self.diversity, self.groups = config.diversity, config.groups

    def __call__(
        self,
        model: Model,
        source_tokens: Tensor,
        source_lengths: Tensor,
        requests: Sequence[Request] | None = None,
    ) -> list[list[Hypothesis]]:
        refuse_required(requests, "diverse_beam")
        return super().__call__(model, source_tokens, source_lengths, requests)

    def reach(self, beam: int) -> int:
        # All that earlier groups took may fall behind.
        return self.config.beam + 1

    def order(self, candidates: Candidates, beam: int, groups: Tensor) -> Candidates:
        width = min(2 * beam, candidates.totals.shape[1])
        places = torch.zeros(len(groups), width, dtype=torch.long, device=groups.device)
        owner = groups // self.groups
        highest = int(candidates.tokens.max()) + 1
        taken = torch.zeros(int(owner.max()) + 1, highest, device=groups.device)
        for group in range(self.groups):
            rows = (groups % self.groups == group).nonzero()[:, 0]
            part = candidates.rows(rows)
            cost = self.diversity * taken[owner[rows]].gather(1, part.tokens)
            places[rows] = (part.totals - cost).topk(width).indices
            tokens = part.pick(places[rows]).tokens
            kept = (tokens == EOS).int().sort(dim=1, stable=True).indices[:, :beam]
            took = tokens.gather(1, kept)
            ones = torch.ones_like(took, dtype=taken.dtype)
            taken[owner[rows]] = taken[owner[rows]].scatter_add(1, took, ones)
        return candidates.pick(places)


@mtplug.hookimpl
def register_search_strategies(register):
    register("diverse_beam", DiverseBeam, DiverseBeamConfig)
