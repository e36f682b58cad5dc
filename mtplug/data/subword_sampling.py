"""Subword regularisation: other subwords of a text than the best, drawn from its seed alone.

SentencePiece draws them, too, but from a generator that it salts in each process: the same seed gives
others after a restart, and a resumed training would not see what the uninterrupted one would have.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect, insort
from collections.abc import Callable, Iterator
from itertools import accumulate, chain, repeat

from sentencepiece import SentencePieceProcessor

from mtplug.data.sentencepiece_file import NORMAL, fields, read_piece
from mtplug.errors import UserError

SPACE = "▁"
"""What stands before the first piece of a word (SentencePiece; Kudo and Richardson 2018)."""
_UNIGRAM, _BPE = 1, 2  # sentencepiece_model.proto: TrainerSpec.ModelType
_CACHED = 20_000  # words whose segmentations are kept, some kilobytes each
_OFTEN_WHOLE = 0.3  # below so many merges left out, most words come out as if none could be
_CACHED_MERGES = 100_000  # words whose ids are kept as they are then, some hundred bytes each


class SubwordSampler:
    """BPE-dropout (Provilkov et al. 2020, algorithm 1) or sampling from a unigram model (Kudo 2018).

    Args:
        model: the bytes of SentencePiece's file.
        processor: of the same model.
        strength: probability that a merge is left out, or the exponent α of a segmentation's probability.
        nbest: unigram: draw from so many best segmentations; -1: from all.

    Raises:
        UserError: the model is neither of BPE nor a unigram model.
    """

    def __init__(
        self, model: bytes, processor: SentencePieceProcessor, strength: float, nbest: int
    ):
        self.processor, self.strength, self.nbest = processor, strength, nbest
        self.pieces: dict[str, tuple[int, float]] = {}
        kind = _UNIGRAM
        number = -1  # entries are numbered in their order
        for field, value in fields(model):
            if field == 1:
                number += 1
                text, score, type_ = read_piece(value)
                if type_ == NORMAL:
                    self.pieces[text] = number, score
            elif field == 2:
                kind = dict(fields(value)).get(3, _UNIGRAM)
        if kind not in (_UNIGRAM, _BPE):
            raise UserError("tokenizer.sampling: the model is neither bpe nor unigram; set it to 0")
        self.draw_run = self.drop_merges if kind == _BPE else self.draw_segments
        self.draws_whole = kind == _UNIGRAM and nbest > 1
        # Words can be cut one by one unless a piece goes from one into the next.
        across = any(SPACE in piece.lstrip(SPACE) for piece in self.pieces)
        self.word = re.compile(".+" if across else f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+", re.DOTALL)
        self.lattices: dict[str, list[tuple[list[float], list[int], list[int]]]] = {}
        self.merged: dict[str, tuple[int, list[int]]] = {}
        self.longest = max(map(len, self.pieces), default=0)

    def __call__(self, texts: list[str], seeds: list[int]) -> list[list[int]]:
        rows: list[list[int]] = []
        generator = random.Random()
        best = [] if self.draws_whole else self.processor.encode(texts, out_type=str)
        for n, seed in enumerate(seeds):
            generator.seed(seed)
            if self.draws_whole:
                rows.append(self.draw_of_best(texts[n], generator.random))
                continue
            ids: list[int] = []
            for run in self.runs(best[n]):
                ids += [run] if isinstance(run, int) else self.draw_run(run, generator.random)
            rows.append(ids)
        return rows

    def runs(self, best: list[str]) -> Iterator[str | int]:
        """Words to cut anew, and the ids of what never is: symbols, bytes, what is unknown."""
        text = ""
        for piece in best:
            if piece in self.pieces:
                text += piece
                continue
            yield from self.word.findall(text)
            text = ""
            yield self.processor.piece_to_id(piece)
        yield from self.word.findall(text)

    def drop_merges(self, run: str, draw: Callable[[], float]) -> list[int]:
        """In each step every merge that is possible is left out with the same probability; of the others
        the one of the highest rank is done, until none is left."""
        if self.strength >= _OFTEN_WHOLE:
            return self.merge(run, draw)[1]
        # As long as none is left out each merge draws once, and what comes out is always the same.
        if run not in self.merged:
            if len(self.merged) >= _CACHED_MERGES:
                self.merged.clear()
            self.merged[run] = self.merge(run, lambda: math.inf)
        merges, ids = self.merged[run]
        for passed in range(merges):
            if (drawn := draw()) < self.strength:
                again = chain(repeat(math.inf, passed), (drawn,), iter(draw, None))
                return self.merge(run, again.__next__)[1]
        return ids

    def merge(self, run: str, draw: Callable[[], float]) -> tuple[int, list[int]]:
        """How many merges were done, and the ids that came out; a merge is left out where what is drawn is below
        `strength`."""
        pieces = self.pieces
        symbols: list[str] = list(run)
        end = len(symbols)
        after, before = list(range(1, end + 1)), list(range(-1, end - 1))
        merges = 0
        # (cost, first symbol, what it and the next become)
        agenda: list[tuple[float, int, str]] = sorted(
            (-pieces[merged][1], first, merged)
            for first, merged in enumerate(map(str.__add__, symbols, symbols[1:]))
            if merged in pieces
        )

        def consider(first: int) -> None:
            if first >= 0 and after[first] < end:
                merged = symbols[first] + symbols[after[first]]
                if merged in pieces:
                    insort(agenda, (-pieces[merged][1], first, merged))

        at = 0
        while at < len(agenda):
            _, first, merged = agenda[at]
            second = after[first]
            if second >= end or symbols[first] + symbols[second] != merged:
                del agenda[at]  # one of the two has become part of another
            elif draw() < self.strength:
                at += 1
            else:
                del agenda[at]
                merges += 1
                symbols[first], symbols[second] = merged, ""
                after[first] = after[second]
                if after[second] < end:
                    before[after[second]] = first
                consider(before[first])
                consider(first)
                at = 0
        if all(symbol in pieces for symbol in symbols if symbol):
            return merges, [pieces[symbol][0] for symbol in symbols if symbol]
        # A character is no piece by itself.
        return merges, self.processor.encode(run.replace(SPACE, " "))

    def draw_segments(self, run: str, draw: Callable[[], float]) -> list[int]:
        """From the end, each piece by its share in the probability of all ways to get there."""
        ids: list[int] = []
        end = len(run)
        if run not in self.lattices:
            if len(self.lattices) >= _CACHED:
                self.lattices.clear()
            self.lattices[run] = self.lattice(run)
        lattice = self.lattices[run]
        while end:
            shares, starts, pieces = lattice[end]
            chosen = min(bisect(shares, draw()), len(shares) - 1)
            ids.append(pieces[chosen])
            end = starts[chosen]
        return ids[::-1]

    def lattice(self, run: str) -> list[tuple[list[float], list[int], list[int]]]:
        """For each place in a run the pieces that end there: cumulated shares, starts and ids."""
        total = [0.0] + [-math.inf] * len(run)  # log of the sum over all ways to get there
        ways: list[tuple[list[float], list[int], list[int]]] = [([], [], [])]
        for end in range(1, len(run) + 1):
            logs, starts, ids = [], [], []
            for start in range(max(0, end - self.longest), end):
                found = self.pieces.get(run[start:end])
                if found and total[start] > -math.inf:
                    logs.append(total[start] + self.strength * found[1])
                    starts.append(start)
                    ids.append(found[0])
            if logs:
                top = max(logs)
                weights = [math.exp(x - top) for x in logs]
                total[end] = top + math.log(sum(weights))
                shares = [x / sum(weights) for x in weights]
                ways.append((list(accumulate(shares)), starts, ids))
            else:
                ways.append(([], [], []))
        return ways

    def draw_of_best(self, text: str, draw: Callable[[], float]) -> list[int]:
        """One of the `nbest` best segmentations of the whole text."""
        found = self.processor.nbest_encode_as_ids(text, nbest_size=self.nbest)
        logs = [self.strength * sum(map(self.processor.get_score, ids)) for ids in found]
        weights = [math.exp(x - max(logs)) for x in logs]
        chosen = bisect(list(accumulate(weights)), draw() * sum(weights))
        return found[min(chosen, len(found) - 1)] if found else []
