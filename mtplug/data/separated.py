"""Several sentences as one text: a separator between them, and which sentences go together."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

from mtplug.data.tokenizers import Tokenizer, Wrapper

SEPARATOR = "<sep>"
"""What stands between sentences of a text."""
_BETWEEN = re.compile(rf"\s*{SEPARATOR}\s*")


class Separated(Wrapper):
    """A tokenizer that knows a separator, whose id comes after those of its vocabulary.

    Sentences around it are cut each by itself, so that they are the same tokens as when they stand alone.

    Args:
        inner: what cuts sentences.
    """

    separator: int

    def __init__(self, inner: Tokenizer):
        super().__init__(inner)
        self.separator = len(inner)

    def __len__(self) -> int:
        return len(self.inner) + 1

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self._by_sentence(texts, self.inner.encode)

    def sample(self, texts: list[str], seeds: list[int]) -> list[list[int]]:
        counts = [len(_BETWEEN.split(text)) for text in texts]
        own = [
            (seed + n) % (1 << 31)
            for seed, count in zip(seeds, counts, strict=True)
            for n in range(count)
        ]
        return self._by_sentence(texts, lambda sentences: self.inner.sample(sentences, own))

    def _by_sentence(
        self, texts: list[str], encode: Callable[[list[str]], list[list[int]]]
    ) -> list[list[int]]:
        sentences = [_BETWEEN.split(text) for text in texts]
        rows = iter(encode([one for several in sentences for one in several]))
        found = []
        for several in sentences:
            ids = list(next(rows))
            for _ in several[1:]:
                ids += [self.separator, *next(rows)]
            found.append(ids)
        return found

    def decode(self, ids: list[list[int]]) -> list[str]:
        rows = [self.parts(row) for row in ids]
        texts = iter(self.inner.decode([part for parts in rows for part in parts]))
        return [together([next(texts) for _ in parts]) for parts in rows]

    def tokens(self, ids: list[int]) -> list[str]:
        inner = iter(self.inner.tokens([i for i in ids if i != self.separator]))
        return [SEPARATOR if i == self.separator else next(inner) for i in ids]

    def parts(self, ids: Sequence[int]) -> list[list[int]]:
        """The ids of each sentence of a text."""
        found: list[list[int]] = [[]]
        for one in ids:
            if one == self.separator:
                found.append([])
            else:
                found[-1].append(one)
        return found


def together(sentences: Sequence[str]) -> str:
    """Several sentences as one text."""
    return f" {SEPARATOR} ".join(sentences)


def windows(
    sizes: Sequence[tuple[int, ...]], documents: Sequence[object], most: int, limit: int
) -> list[list[int]]:
    """Which sentences go together: numbers that follow each other, every one once.

    Those of a document are shared out evenly.

    Args:
        sizes: tokens of each sentence, on one or more sides.
        documents: what tells which document a sentence is of: neighbours whose values are equal are of one; None stands
            by itself.
        most: sentences that go together.
        limit: tokens of those on any side, separators counted; a sentence that has more stands by itself.
    """
    found: list[list[int]] = []
    for document, run in itertools.groupby(range(len(sizes)), key=lambda n: documents[n]):
        numbers = list(run)
        count = -(-len(numbers) // most)
        share = 1 if document is None else -(-len(numbers) // count)
        room: list[int] = []
        for place, n in enumerate(numbers):
            room = [left - size - 1 for left, size in zip(room, sizes[n], strict=False)]
            if not place or len(found[-1]) == share or min(room) < 0:
                found.append([])
                room = [limit - size for size in sizes[n]]
            found[-1].append(n)
    return found
