"""The text that a tokenizer is trained on: that of all corpora, or a sample of it."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator

from mtplug.data.corpora import Corpus


class Texts:
    """The texts of corpora, in their order; empty ones are left out.

    Of more than `most` a sample is taken from all over all corpora, of which each may be of another kind or
    language: the same each time, and each pair as probable as any other.

    Args:
        corpora: iterated anew each time, and once more to be counted where there is a `most`.
        most: texts that are given, at most, or one more; 0: all.
    """

    def __init__(self, corpora: list[Corpus], most: int = 0):
        self.corpora, self.most = corpora, most

    def of(self, sides: tuple[int, ...]) -> Iterator[str]:
        """The texts of these sides of each pair: 0 for the source, 1 for the target."""
        pairs = itertools.chain.from_iterable(self.corpora)
        if self.most <= 0:
            yield from (pair[s] for pair in pairs for s in sides if pair[s])
            return
        left = sum(self._counts[s] for s in sides)
        wanted = min(left, self.most)
        rng = random.Random(1)
        for pair in pairs:
            texts = [pair[s] for s in sides if pair[s]]
            # Selection sampling (Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S).
            if left * rng.random() < wanted:
                yield from texts
                wanted -= len(texts)
            left -= len(texts)

    @functools.cached_property
    def _counts(self) -> tuple[int, int]:
        """Texts of sources and of targets."""
        sources = targets = 0
        for source, target in itertools.chain.from_iterable(self.corpora):
            sources += bool(source)
            targets += bool(target)
        return sources, targets
