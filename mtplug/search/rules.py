"""Which tokens may come next: the one place for limits, prefixes, forbidden words and repetition.

Every strategy hands its log-probabilities to `Rules.apply` before it chooses. What is ruled out becomes -inf;
the log-probabilities of what remains are still the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtplug.architectures.base import Model
from mtplug.data.tokenizers import EOS, PAD, UNK
from mtplug.nn.positions import positions_of
from mtplug.search.base import Request, SearchConfig


class Rules:
    """The rules for a batch of B sentences.

    Args:
        config: limits and repetition.
        source_lengths: (B,) with `</s>`.
        requests: of each sentence, if there are any.
        model: which may have positions for so many tokens only.
    """

    def __init__(
        self,
        config: SearchConfig,
        source_lengths: Tensor,
        requests: Sequence[Request] | None,
        model: Model | None = None,
    ):
        device = source_lengths.device
        self.ngram, self.least = config.no_repeat_ngram, config.min_length
        self.allow_unknown = config.allow_unknown
        self.limits = (source_lengths * config.max_ratio).long() + config.max_extra
        self.prefix: Tensor | None = None
        self.closing: tuple[Tensor, Tensor] | None = None
        self.forbidden: list[_Sequences] = []
        if requests:
            self._take(requests, device)
        most = math.inf if model is None else positions_of(model)
        if most < math.inf:
            self.limits = self.limits.clamp(max=int(most))

    def _take(self, requests: Sequence[Request], device: torch.device) -> None:
        longest = max(len(r.prefix) for r in requests)
        if longest:
            self._close(requests, device)
            rows = [r.prefix + [PAD] * (longest - len(r.prefix)) for r in requests]
            self.prefix = torch.tensor(rows, device=device)
        forced = [
            len(r.prefix) + sum(max(map(len, spellings)) for spellings in r.required)
            for r in requests
        ]
        self.limits = self.limits + torch.tensor(forced, device=device)
        lengths = {len(ids) for r in requests for ids in r.forbidden}
        self.forbidden = [
            _Sequences(n, [[f for f in r.forbidden if len(f) == n] for r in requests], device)
            for n in sorted(lengths)
        ]

    def _close(self, requests: Sequence[Request], device: torch.device) -> None:
        inside = next((r.word_inside for r in requests if r.word_inside is not None), None)
        if inside is not None and any(r.closed for r in requests):
            ends = [len(r.prefix) if r.closed else -1 for r in requests]
            self.closing = torch.tensor(ends, device=device), inside.to(device)

    def at_limit(self, sentences: Tensor, length: int) -> Tensor:
        """(R,) bool: may only `</s>` come as token number `length`, counted from 1?"""
        return self.limits[sentences] <= length

    def apply(self, scores_RV: Tensor, sentences: Tensor, history_Rt: Tensor) -> None:
        """Rule tokens out, in place.

        Args:
            scores_RV: of the next token of each hypothesis.
            sentences: (R,) the number of the sentence that each hypothesis translates.
            history_Rt: its tokens so far, without the first `</s>`.
        """
        step = history_Rt.shape[1]
        forced = self._forced(sentences, step)
        if forced is not None:
            rows, tokens = forced
            kept = scores_RV[rows, tokens]
        scores_RV[:, PAD] = -torch.inf
        if not self.allow_unknown:
            scores_RV[:, UNK] = -torch.inf
        if 0 < self.ngram <= step:
            self._block_repetition(scores_RV, history_Rt)
        if self.closing is not None:
            ends, inside = self.closing
            (closed,) = (ends[sentences] == step).nonzero(as_tuple=True)
            scores_RV[closed] = scores_RV[closed].masked_fill(inside, -torch.inf)
        for sequences in self.forbidden:
            sequences.block(scores_RV, sentences, history_Rt)
        at_limit = self.at_limit(sentences, step + 1)
        if step < self.least:
            scores_RV[~at_limit, EOS] = -torch.inf
        if at_limit.any():
            ends = scores_RV[at_limit, EOS]
            scores_RV[at_limit] = -torch.inf
            scores_RV[at_limit, EOS] = ends
        if forced is not None:  # what a user typed wins over the rules
            scores_RV[rows] = -torch.inf
            scores_RV[rows, tokens] = kept

    def in_prefix(self, sentences: Tensor, step: int) -> Tensor | None:
        """(R,) bool: is token number `step`, counted from 0, forced? None if none is."""
        if self.prefix is None or step >= self.prefix.shape[1]:
            return None
        return self.prefix[sentences, step] != PAD

    def _forced(self, sentences: Tensor, step: int) -> tuple[Tensor, Tensor] | None:
        inside = self.in_prefix(sentences, step)
        if self.prefix is None or inside is None or not inside.any():
            return None
        rows = inside.nonzero()[:, 0]
        return rows, self.prefix[sentences[rows], step]

    def _block_repetition(self, scores_RV: Tensor, history_Rt: Tensor) -> None:
        windows = history_Rt.unfold(1, self.ngram, 1)  # (R, t - n + 1, n)
        recent = history_Rt[:, history_Rt.shape[1] - self.ngram + 1 :]
        same = (windows[..., :-1] == recent[:, None]).all(-1)
        rows, places = same.nonzero(as_tuple=True)
        scores_RV[rows, windows[rows, places, -1]] = -torch.inf


class _Sequences:
    """Forbidden sequences of one length n: a match of the first n-1 rules out the last."""

    def __init__(self, n: int, of_sentence: list[list[list[int]]], device: torch.device):
        distinct = sorted({tuple(ids) for forbidden in of_sentence for ids in forbidden})
        number = {ids: i for i, ids in enumerate(distinct)}
        table = torch.tensor(distinct, device=device)
        self.n, self.starts, self.last = n, table[:, :-1], table[:, -1]
        self.owned = torch.zeros(len(of_sentence), len(distinct), dtype=torch.bool, device=device)
        for row, forbidden in enumerate(of_sentence):
            self.owned[row, [number[tuple(ids)] for ids in forbidden]] = True

    def block(self, scores_RV: Tensor, sentences: Tensor, history_Rt: Tensor) -> None:
        if history_Rt.shape[1] < self.n - 1:
            return
        hits = self.owned[sentences]
        if self.n > 1:
            recent = history_Rt[:, history_Rt.shape[1] - self.n + 1 :]
            hits = hits & (recent[:, None] == self.starts).all(-1)
        rows, which = hits.nonzero(as_tuple=True)
        scores_RV[rows, self.last[which]] = -torch.inf
