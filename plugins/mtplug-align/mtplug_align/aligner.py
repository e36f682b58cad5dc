"""A statistical aligner of the tokens of sentence pairs, learnt from batches.

IBM Model 2 with a prior for the diagonal that has no parameters to learn, and a Dirichlet prior that keeps
rare tokens from explaining everything (Dyer et al. 2013, `fast_align`), in both directions, which have
to agree (Liang et al. 2006).

Shapes: B sentences, S source and T target positions, L links of tokens that stand in a pair, K distinct ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtplug.errors import UserError

DIAGONAL = 4.0
"""how fast a link's prior falls with its distance from the diagonal, in shares of the sentences"""
NULL = 0.08
"""prior of a token that nothing on the other side stands for"""
DIRICHLET = 0.01
ITERATIONS = 5
UNSEEN = 1e-9
"""probability of a token by NULL that training never saw"""


@dataclass
class Direction:
    """How probable tokens of one side are, given one of the other.

    Attributes:
        links: (K,) for each pair of tokens that was seen.
        null: (V,) by no token of the other side.
    """

    links: Tensor
    null: Tensor


class Aligner:
    """Tells how probable it is that a target token stands for a source token.

    Args:
        keys: (K,) ascending: source token · target_size + target token, of all pairs that were seen.
        forward, backward: of target tokens given source tokens, and of source tokens given target tokens.
        target_size: of the vocabulary.
    """

    def __init__(self, keys: Tensor, forward: Direction, backward: Direction, target_size: int):
        self.keys, self.forward, self.backward = keys, forward, backward
        self.target_size = target_size

    def to(self, device: torch.device) -> Aligner:
        """The same on a device; itself, if it is there."""
        if self.keys.device == device:
            return self
        forward, backward = (
            Direction(d.links.to(device), d.null.to(device)) for d in (self.forward, self.backward)
        )
        return Aligner(self.keys.to(device), forward, backward, self.target_size)

    def __call__(self, batch: Any) -> Tensor:
        """(B, T, S) in [0, 1]: the product of both directions' posteriors; 0 at padding.

        `</s>` stands for `</s>`.
        """
        source, target = batch.source_tokens, batch.target_tokens
        prior, real = _prior(batch.source_lengths - 1, batch.target_lengths - 1, target, source)
        wanted = source[:, None, :] * self.target_size + target[:, :, None]
        at = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        seen = real & (self.keys[at] == wanted)
        found = []
        for direction, tokens, over in ((self.forward, target, 2), (self.backward, source, 1)):
            p = torch.where(seen, direction.links[at], 0.0) * prior
            p = p / (prior.sum(over, keepdim=True) + 1e-30) * (1 - NULL)
            null = NULL * direction.null[tokens].unsqueeze(over)
            found.append(p / (p.sum(over, keepdim=True) + null))
        ends = torch.arange(len(target), device=target.device)
        agreed = found[0] * found[1]
        agreed[ends, batch.target_lengths - 1, batch.source_lengths - 1] = 1.0
        return agreed


def learn(batches: Iterable[Any], source_size: int, target_size: int, most: int) -> Aligner:
    """The aligner of the first batches, so many that there are about `most` links.

    Raises:
        UserError: batches are packed, or there are no tokens to align.
    """
    keys, priors, rows, columns = [], [], [], []
    total = first_row = first_column = 0
    for batch in batches:
        if batch.packed:
            raise UserError(
                "criterion guided_alignment takes padded batches; set training.packing=false"
            )
        source, target = batch.source_tokens.cpu(), batch.target_tokens.cpu()
        lengths = batch.source_lengths.cpu() - 1, batch.target_lengths.cpu() - 1
        prior, real = _prior(*lengths, target, source)
        key = source[:, None, :] * target_size + target[:, :, None]
        row = first_row + torch.arange(target.numel()).view(*target.shape, 1)
        column = first_column + torch.arange(source.numel()).view(len(source), 1, -1)
        keys.append(key[real])
        priors.append(prior[real])
        rows.append(row.expand(real.shape)[real].int())
        columns.append(column.expand(real.shape)[real].int())
        first_row, first_column = first_row + target.numel(), first_column + source.numel()
        total += len(keys[-1])
        if total >= most:
            break
    if not total:
        raise UserError("criterion guided_alignment: there are no training pairs to align")
    distinct, link = torch.unique(torch.cat(keys), return_inverse=True)
    prior = torch.cat(priors)
    source_of, target_of = distinct // target_size, distinct % target_size
    forward = _maximise(link, prior, torch.cat(rows), source_of, target_of, target_size)
    backward = _maximise(link, prior, torch.cat(columns), target_of, source_of, source_size)
    return Aligner(distinct, forward, backward, target_size)


def _prior(
    source_lengths: Tensor, target_lengths: Tensor, target: Tensor, source: Tensor
) -> tuple[Tensor, Tensor]:
    """(B, T, S) float32 prior of links, not normalised, 0 where no two tokens meet; and where they do."""
    i = torch.arange(source.shape[1], device=source.device)[None, :]
    j = torch.arange(target.shape[1], device=target.device)[None, :]
    real = (j < target_lengths[:, None])[:, :, None] & (i < source_lengths[:, None])[:, None, :]
    along_source = (i + 0.5) / source_lengths.clamp(min=1)[:, None]
    along_target = (j + 0.5) / target_lengths.clamp(min=1)[:, None]
    distance = (along_target[:, :, None] - along_source[:, None, :]).abs()
    return torch.exp(-DIAGONAL * distance) * real, real


def _maximise(
    link: Tensor, prior: Tensor, group: Tensor, given: Tensor, made: Tensor, size: int
) -> Direction:
    """Expectation-maximisation in one direction.

    Args:
        link: (L,) index of the distinct pair.
        prior: (L,).
        group: (L,) which token is explained: the links of one compete.
        given, made: (K,) the token that explains, and the one that is explained.
        size: of the vocabulary of explained tokens.
    """
    group = torch.unique(group, return_inverse=True)[1]
    first = torch.empty(int(group.max()) + 1, dtype=torch.long)
    first[group] = made[link]  # which token each group explains
    prior = prior / torch.zeros(len(first)).index_add_(0, group, prior)[group] * (1 - NULL)
    links = torch.full((len(given),), 1.0 / size)
    null = torch.full((size,), 1.0 / size)
    for _ in range(ITERATIONS):
        share = links[link] * prior
        by_null = NULL * null[first]
        whole = torch.zeros(len(first)).index_add_(0, group, share) + by_null
        counts = torch.zeros(len(given), dtype=torch.float64)
        counts.index_add_(0, link, (share / whole[group]).double())
        null_counts = torch.zeros(size, dtype=torch.float64)
        null_counts.index_add_(0, first, (by_null / whole).double())
        totals = torch.zeros(int(given.max()) + 1, dtype=torch.float64).index_add_(0, given, counts)
        wide = DIRICHLET * size
        log = torch.digamma(counts + DIRICHLET) - torch.digamma(totals + wide)[given]
        links = log.exp().float()
        log = torch.digamma(null_counts + DIRICHLET) - torch.digamma(null_counts.sum() + wide)
        null = log.exp().float().clamp(min=UNSEEN)
    return Direction(links, null)
