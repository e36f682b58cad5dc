"""Training without a store: pools of text that is read and tokenised anew in each epoch."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from mtplug.data.corpora import Corpus
from mtplug.data.encoding import COUNTS, BadPair, Encoding, encode
from mtplug.data.pairs import Pairs, joined
from mtplug.data.pools import POOL, Pool, Pools, epoch_weights, require_pairs
from mtplug.errors import UserError


class TextPools(Pools):
    """Pools of one or several corpora, in the order of their files.

    Corpora that fit into one pool are shuffled whole and, with whole weights, give the batches that a store of
    them gives. Of larger ones a pool holds consecutive lines of each, so that a corpus sorted by subject
    is better stored, or shuffled beforehand.

    Args:
        corpora: read once at the start, to be counted.
        weights: as of `StorePools`; a corpus seen half as often goes on in the next epoch where it
            ended in the last.
        size: lines of a pool, about.
        temperature: see `epoch_weights`.
        report: told, once an epoch was read, what became of its lines.
    """

    def __init__(
        self,
        corpora: list[Corpus],
        encoding: Encoding,
        weights: list[float],
        size: int = POOL,
        temperature: float = 1.0,
        report: Callable[[str], None] = lambda text: None,
    ):
        self.report: Callable[[str], None] | None = report
        self.corpora, self.encoding = corpora, encoding
        self._stamps = [_stamp(corpus) for corpus in corpora]
        self.lines = [sum(1 for _ in corpus) for corpus in corpora]
        self._bad_lines = sum(corpus.bad_lines for corpus in corpora)
        weights = epoch_weights(self.lines, weights, temperature)
        self._bases = np.cumsum([0, *self.lines])
        self._lengths = [round(w * n) for w, n in zip(weights, self.lines, strict=True)]
        self.pairs = sum(self._lengths)
        require_pairs(self.pairs, weights)
        self.count = min(-(-self.pairs // size), max(self._lengths))  # none without a line
        self._counts: dict[tuple[int, int], collections.Counter[str]] = {}  # of each epoch's pools
        self._open: dict[int, tuple[int, Iterator[tuple[str, str]]]] = {}

    def pool(self, epoch: int, number: int, rng: np.random.Generator) -> Pool:
        parts: list[Pairs] = []
        ids: list[np.ndarray] = []
        counts = collections.Counter(dict.fromkeys(COUNTS, 0))
        for corpus, length in enumerate(self._lengths):
            begin, end = (length * n // self.count for n in (number, number + 1))
            place = ((epoch - 1) * length + begin) % max(self.lines[corpus], 1)
            for pairs, numbers, found in self._read(corpus, place, end - begin):
                parts.append(pairs)
                ids.append(self._bases[corpus] + numbers - 1)
                counts.update(found)
        if not sum(map(len, parts)):
            names = " and ".join(map(str, self.corpora))
            raise UserError(
                f"{names}: no sentence pair is left of {self.pairs:,} lines ({dict(counts)})"
            )
        self._tell(epoch, number, counts)
        return Pool(joined(parts), np.concatenate(ids))

    def _tell(self, epoch: int, number: int, counts: collections.Counter[str]) -> None:
        """Say what became of the lines of the first epoch that was read whole."""
        if self.report is None:
            return
        self._counts[epoch, number] = counts
        own = [one for (of, _), one in self._counts.items() if of == epoch]
        if len(own) < self.count:
            return
        total = sum(own, collections.Counter(bad_lines=self._bad_lines))
        self.report(f"data: epoch {epoch}: {total['pairs']:,} pairs{self.encoding.told(total)}")
        if unknown := self.encoding.unknown(total):
            self.report(f"data: {unknown}")
        self.report, self._counts = None, {}

    def _read(
        self, corpus: int, place: int, count: int
    ) -> Iterator[tuple[Pairs, np.ndarray, dict[str, int]]]:
        """(pairs kept, the line of each, counts) of `count` lines from line `place` on, the first one following
        the last."""
        while count:
            here = min(count, self.lines[corpus] - place)
            at, lines = self._open.pop(corpus, (-1, iter(())))
            if _stamp(self.corpora[corpus]) != self._stamps[corpus]:
                raise UserError(f"{self.corpora[corpus]} has changed since the training began")
            if at != place:
                lines = itertools.islice(self.corpora[corpus], place, None)
            chosen = itertools.islice(lines, here)
            try:
                for _, pairs, numbers, counts in encode(chosen, self.encoding, 1, place + 1):
                    yield pairs, numbers, counts
            except BadPair as error:
                raise UserError(f"{self.corpora[corpus]}: {error}") from None
            self._open[corpus] = place + here, lines
            place, count = (place + here) % self.lines[corpus], count - here


def _stamp(corpus: Corpus) -> list[tuple[int, int]]:
    """What tells that a corpus' files are still the same."""
    return [(s.st_size, s.st_mtime_ns) for s in (file.stat() for file in corpus.files())]
