"""Which pieces of a vocabulary begin a word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import numpy as np

from mtplug.data.subword_sampling import SPACE
from mtplug.data.tokenizers import EOS, PAD, UNK, Tokenizer, Wrapper, pieces_of


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) bool, whether a piece begins a word, by its written form.

    In a vocabulary without SPACE every piece is a word; where all have it, unknown words are one piece too.
    """
    pieces = pieces_of(tokenizer)
    starts = np.array([piece.startswith(SPACE) for piece in pieces])
    special = np.isin(np.arange(len(pieces)), (PAD, EOS, UNK))
    symbols = np.array([p.startswith("<") and p.endswith(">") for p in pieces])
    ordinary = starts[~special & ~symbols]
    if not ordinary.any():
        return ~special | (np.arange(len(pieces)) == UNK)
    starts[UNK] = ordinary.all()
    return starts


def separated(text: str) -> list[str]:
    """The words of a text that blanks separate; other blanks than those of a keyboard, such as U+00A0, are in words."""
    return [word for word in re.split("[ \t]+", text) if word]


class WordByWord(Wrapper):
    """A tokenizer that cuts each word by itself, so that one piece begins it, whatever stands in it or beside it.

    SentencePiece by itself makes one unknown piece of neighbouring words that it does not know, and sees a blank in U+2581
    and, as it normalises, in U+00A0 or U+200B.

    Args:
        inner: what cuts a word.

    Attributes:
        starts: see `word_starts`.
    """

    def __init__(self, inner: Tokenizer):
        super().__init__(inner)
        self.starts = word_starts(inner)

    def encode(self, texts: list[str]) -> list[list[int]]:
        rows = [separated(text) for text in texts]
        cut = self._cut(rows)
        return [[i for word in row for i in cut[word][1]] for row in rows]

    def sample(self, texts: list[str], seeds: list[int]) -> list[list[int]]:
        if not self.samples:
            return self.encode(texts)
        rows = [separated(text) for text in texts]
        cut = self._cut(rows)
        made = [" ".join(cut[word][0] for word in row).replace("  ", " ") for row in rows]
        return self.inner.sample(made, seeds)

    def _cut(self, rows: Iterable[list[str]]) -> dict[str, tuple[str, list[int]]]:
        """Each word as it is cut, and its ids: without what passes for a blank where it would begin twice, or not at all;
        with a blank in front where the tokenizer puts none there, as that of bytes."""
        words = list(dict.fromkeys(word for row in rows for word in row))
        found = dict(zip(words, zip(words, self.inner.encode(words), strict=True), strict=True))
        for word, (_, ids) in found.items():
            if self._begins(ids) == 1:
                continue
            written = unicodedata.normalize("NFKC", word)
            bare = "".join(c for c in written if c.isprintable() and c not in f" {SPACE}\ufffd")
            for made in (bare, "_", f" {word}"):
                (ids,) = self.inner.encode([made])
                if self._begins(ids) == 1:
                    found[word] = made, ids
                if self._begins(ids):
                    break
        return found

    def _begins(self, ids: list[int]) -> int:
        return int(self.starts[ids].sum())
