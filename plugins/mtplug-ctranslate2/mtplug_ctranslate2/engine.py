"""Search by CTranslate2, with hypotheses, scores and limits that mean what ours mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ctranslate2
import torch
from torch import Tensor

from mtplug.data.tokenizers import EOS, PAD
from mtplug.errors import UserError
from mtplug.exporting import Engine
from mtplug.search import BeamSearch, Greedy, Hypothesis, SearchStrategy

CPU_BATCH = 32
"""Sentences that CTranslate2 translates at once on a CPU: 5 to 10 % faster than all that it is given, in int8 with beam 5."""

NEAR_ZERO = 1e-30
"""A length penalty of 0 would let CTranslate2 stop at the first translation that ends; with this one its
scores are sums of log-probabilities and the beam is searched until it is full."""


class CTranslate2Engine(Engine):
    """An opened model.

    Args:
        path: a folder that the exporter wrote.
        device: auto, cpu, cuda or cuda:N.
        quantization: what products are computed in.

    Raises:
        UserError: the device cannot compute so.
    """

    def __init__(self, path: Path, device: str, quantization: str):
        kind, _, index = device.partition(":")
        try:
            self.translator = ctranslate2.Translator(
                str(path),
                device=kind,
                device_index=int(index or 0),
                compute_type=quantization,
                intra_threads=torch.get_num_threads(),
            )
        except (ValueError, RuntimeError) as error:
            raise UserError(f"CTranslate2 cannot open {path} on {device}: {error}") from None
        self.batch = CPU_BATCH if self.translator.device == "cpu" else 0
        self.source, self.target = (_vocabulary(path, side) for side in ("source", "target"))
        settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
        self.ends: bool = settings.get("add_source_eos", True)
        self.ids = {token: i for i, token in enumerate(self.target)}

    def strategy(self, search: SearchStrategy, token_scores: bool) -> SearchStrategy:
        config: Any = search.config
        if type(search) not in (BeamSearch, Greedy):
            raise UserError(
                f"search: CTranslate2 does not search as {type(search).__name__} does; use "
                "search.name=beam or greedy"
            )
        for key, plain in (
            ("min_length", 0), ("allow_unknown", True), ("no_repeat_ngram", 0), ("coverage_penalty", 0.0), ("stop", "full"), ("language_model", ""), ("shortlist", 0), ("terminology", ""),
        ):  # fmt: skip
            value = getattr(config, key, plain)
            if value != plain:
                raise UserError(
                    f"search.{key}={value}: only without --backend ctranslate2, which has {plain!r}"
                )
        return CTranslate2Search(self, search, token_scores)

    def search(
        self, sources: list[list[int]], beam: int, longest: int, forbid: list[list[int]]
    ) -> list[list[Hypothesis]]:
        """All hypotheses of each sentence, in any order; `score` is the sum of log-probabilities.

        Args:
            sources: ids without `</s>`.
            beam: 1 is greedy search.
            longest: most tokens of a translation that does not end.
            forbid: sequences of ids that no hypothesis holds.
        """
        end = self.target[EOS]
        found = self.translator.translate_batch(
            self._given(sources),
            beam_size=beam,
            num_hypotheses=beam,
            length_penalty=NEAR_ZERO,
            min_decoding_length=0,
            max_decoding_length=longest,
            max_input_length=0,
            max_batch_size=self.batch,
            suppress_sequences=[[self.target[i] for i in ids] for ids in forbid] or None,
            return_scores=True,
            return_end_token=True,
        )
        return [
            [
                Hypothesis(
                    [self.ids[t] for t in tokens if t != end], score, [], tokens[-1:] == [end]
                )
                for tokens, score in zip(result.hypotheses, result.scores, strict=True)
            ]
            for result in found
        ]

    def _given(self, sources: list[list[int]]) -> list[list[str]]:
        """Tokens; of an empty source, where the encoder does not see its end otherwise, that is what it sees."""
        least = [] if self.ends else [EOS]
        return [[self.source[i] for i in ids or least] for ids in sources]

    def score(self, sources: list[list[int]], targets: list[list[int]]) -> list[list[float]]:
        """Log-probabilities, in nats, of each target token of each sentence, `</s>` last."""
        scored = self.translator.score_batch(
            self._given(sources),
            [[self.target[i] for i in ids] for ids in targets],
            max_input_length=0,
        )
        return [list(result.log_probs) for result in scored]


class CTranslate2Search(SearchStrategy):
    """What `BeamSearch` or `Greedy` finds, found by an engine."""

    def __init__(self, engine: CTranslate2Engine, search: SearchStrategy, token_scores: bool):
        self.engine, self.config, self.width = engine, search.config, search.width
        self.normalised = getattr(search, "normalised", lambda total, length: total / length)
        self.token_scores = token_scores

    def __call__(
        self, model: Any, source_tokens: Tensor, source_lengths: Tensor
    ) -> list[list[Hypothesis]]:
        c = self.config
        lengths = source_lengths.tolist()
        sources = [row[: n - 1] for row, n in zip(source_tokens.tolist(), lengths, strict=True)]
        # Ours may be as long as this, and then `</s>` follows whatever its probability.
        limits = [int(n * c.max_ratio) + c.max_extra - 1 for n in lengths]
        found = self.engine.search(sources, self.width, max(1, *limits), [])
        # A batch has one limit, and padding is as good a token to CTranslate2 as any other. Where a
        # token is ruled out, CTranslate2 shares its probability among the rest; ours doesn't.
        inexact = set()
        for limit in sorted(set(limits)):
            again = [
                i
                for i, row in enumerate(found)
                if limits[i] == limit and any(len(h.tokens) > limit or PAD in h.tokens for h in row)
            ]
            if again:
                rows = [[Hypothesis([], 0.0, [], finished=False)] for _ in again]
                if limit > 0:
                    of = [sources[i] for i in again]
                    rows = self.engine.search(of, self.width, limit, [[PAD]])
                for i, row in zip(again, rows, strict=True):
                    found[i] = row
                inexact |= set(again)
        pairs = list(zip(sources, found, strict=True))
        self._set_scores(
            [(pairs[i][0], h) for i, row in enumerate(found) for h in row if i in inexact]
        )
        self._set_scores(
            [(ids, h) for ids, row in pairs for h in row if not h.finished and not h.token_scores]
        )
        for row in found:
            for h in row:
                total = sum(h.token_scores) if h.token_scores else h.score
                h.score = self.normalised(total, len(h.tokens) + 1)
            distinct = {tuple(h.tokens): h for h in sorted(row, key=lambda h: h.score)}
            row[:] = sorted(distinct.values(), key=lambda h: -h.score)[: getattr(c, "nbest", 1)]
        if self.token_scores:
            self._set_scores([(ids, h) for ids, row in pairs for h in row if not h.token_scores])
        return found

    def _set_scores(self, of: list[tuple[list[int], Hypothesis]]) -> None:
        scores = self.engine.score([ids for ids, _ in of], [h.tokens for _, h in of]) if of else []
        for (_, hypothesis), row in zip(of, scores, strict=True):
            hypothesis.token_scores = row


def _vocabulary(path: Path, side: str) -> list[str]:
    """The tokens of a side, in the order of their ids."""
    own = path / f"{side}_vocabulary.json"
    file = own if own.is_file() else path / "shared_vocabulary.json"
    return list(json.loads(file.read_text(encoding="utf-8")))
