"""Mask-Predict (Ghazvininejad et al. 2019, section 3): all tokens at once, then the least sure of them again.

Shapes: B sentences, l lengths, R = B · l rows, one for each sentence and length, N tokens of a row, T positions of
the longest row, `</s>` counted, M masked positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtplug.architectures import Model
from mtplug.data.tokenizers import EOS, PAD, UNK
from mtplug.errors import UserError
from mtplug.nn.positions import positions_of
from mtplug.registry import require_range
from mtplug.search import Hypothesis, Request, SearchStrategy
from mtplug_maskpredict.model import CmlmTransformer, FillsMasks, lowest, mean_log_probs, members

ROWS = 512
"""Masked positions whose logits are held at a time."""


@dataclass
class MaskPredictConfig:
    """Mask-Predict: as many passes for a long sentence as for a short one."""

    iterations: int = 10
    """passes of the decoder (T); 1: every token at once, knowing of no other"""
    lengths: int = 5
    """translations that are made of each sentence, of the so many most probable lengths (l)"""
    nbest: int = 1
    """translations returned for each sentence; at most `lengths`"""
    max_ratio: float = 2.0
    """a translation has fewer tokens than `max_ratio` · source tokens + `max_extra`"""
    max_extra: int = 20
    """tokens; see `max_ratio`"""
    allow_unknown: bool = True
    """a translation may hold the unknown token, which is written ⁇ or <unk>"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "iterations", "lengths", "nbest")
        require_range(self, 0, math.inf, "max_ratio", "max_extra")
        if self.nbest > self.lengths:
            raise ValueError(
                f"nbest {self.nbest}: at most lengths, which is {self.lengths}, is due"
            )


class MaskPredict(FillsMasks, SearchStrategy):
    """`score` is the mean log-probability of the tokens, each as it was when it was last told; the last of
    `token_scores`, that of `</s>`, is the log-probability of the length, and does not count for `score`."""

    def __init__(self, config: MaskPredictConfig):
        self.config = config
        self.width = config.lengths

    @torch.inference_mode()
    def __call__(
        self,
        model: Model,
        source_tokens: Tensor,
        source_lengths: Tensor,
        requests: Sequence[Request] | None = None,
    ) -> list[list[Hypothesis]]:
        if requests is not None:
            raise UserError(
                "search.name=mask_predict takes no prefix, required or forbidden phrases"
            )
        models = members(model)
        encoded = [m.encode(source_tokens, source_lengths) for m in models]
        told = [
            m.length_logits(memory, source_lengths)
            for m, (memory, _) in zip(models, encoded, strict=True)
        ]
        fewest = min(x.shape[1] for x in told)  # what all members tell apart
        told = [x[:, :fewest] for x in told]
        limits = (source_lengths * self.config.max_ratio).long() + self.config.max_extra - 1
        limits = limits.clamp(1, int(min(positions_of(model), fewest) - 1))
        length_scores, lengths = likely_lengths(mean_log_probs(told), limits, self.config.lengths)
        wide = lengths.shape[1]
        sources = [
            (m.repeat_interleave(wide, 0), None if n is None else n.repeat_interleave(wide, 0))
            for m, n in encoded
        ]
        counts = lengths.flatten()
        canvas, scores = blank(counts, models[0].mask_id)
        for iteration in range(self.config.iterations):
            masked = least_sure(scores, counts, iteration, self.config.iterations)
            rows = masked.any(1).nonzero()[:, 0]
            if not len(rows):
                break
            some = masked[rows]
            seen = canvas[rows].masked_fill(some, models[0].mask_id)
            features = []
            for m, (memory, padded) in zip(models, sources, strict=True):
                at = None if padded is None else padded[rows]
                features.append(m.decode(memory[rows], at, seen)[some])
            scores[masked], canvas[masked] = self._told(models, features)
        columns = (canvas, scores, counts, length_scores.flatten())
        found = [_hypothesis(*row) for row in zip(*(x.tolist() for x in columns), strict=True)]
        return [self._best(found[start : start + wide]) for start in range(0, len(found), wide)]

    def _told(self, models: list[CmlmTransformer], features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Each model's features (M, C) to the log-probability and the id (M,) of the best token."""
        values, ids = [], []
        for chunk in zip(*(f.split(ROWS) for f in features), strict=True):
            logits = [m.project(f) for m, f in zip(models, chunk, strict=True)]
            log_probs = mean_log_probs(logits)
            log_probs[:, [PAD, EOS]] = -torch.inf
            if not self.config.allow_unknown:
                log_probs[:, UNK] = -torch.inf
            best = log_probs.max(-1)
            values.append(best.values)
            ids.append(best.indices)
        return torch.cat(values), torch.cat(ids)

    def _best(self, found: list[Hypothesis]) -> list[Hypothesis]:
        there = [h for h in found if h.token_scores[-1] > -math.inf]
        return sorted(there, key=lambda h: -h.score)[: self.config.nbest]


def likely_lengths(log_probs: Tensor, limits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The most probable numbers of tokens from 1 to a limit.

    Args:
        log_probs: (B, L + 1) of 0 to L tokens.
        limits: (B,) from 1 to L.
        count: l, at most.

    Returns:
        log-probabilities and lengths (B, l). Where there are fewer than l, the first stands for the rest, with the
        log-probability -inf.
    """
    lengths = torch.arange(1, log_probs.shape[1], device=log_probs.device)
    possible = log_probs[:, 1:].masked_fill(lengths > limits[:, None], -torch.inf)
    best, places = possible.topk(min(count, int(limits.max())))
    return best, torch.where(best > -torch.inf, places, places[:, :1]) + 1


def blank(counts: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """For rows of N tokens a canvas (R, T) of masks, and scores (R, T) of nothing."""
    places = torch.arange(int(counts.max()) + 1, device=counts.device)
    canvas = torch.full((len(counts), len(places)), mask_id, device=counts.device)
    canvas = canvas.masked_fill(places == counts[:, None], EOS)
    canvas = canvas.masked_fill(places > counts[:, None], PAD)
    return canvas, torch.zeros(canvas.shape, device=counts.device)


def least_sure(scores: Tensor, counts: Tensor, iteration: int, iterations: int) -> Tensor:
    """The tokens that are told in an iteration, counted from 0: (R, T) bool, ⌊N · (T - t) / T⌋ in each row.

    Args:
        scores: (R, T) log-probabilities; those of the fewest are chosen, the first of equal ones.
        counts: (R,) N.
    """
    many = counts * (iterations - iteration) // iterations
    return lowest(scores, counts, many)


def _hypothesis(ids: list[int], scores: list[float], count: int, of_length: float) -> Hypothesis:
    return Hypothesis(ids[:count], sum(scores[:count]) / count, [*scores[:count], of_length])
