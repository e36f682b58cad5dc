"""Which pieces of a vocabulary begin a word."""

from __future__ import annotations

import numpy as np

from mtplug.data.tokenizers import EOS, PAD, UNK, Tokenizer

SPACE = "▁"
"""What stands before the first piece of a word (SentencePiece; Kudo and Richardson 2018)."""


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) bool, whether a piece begins a word, by its written form.

    In a vocabulary without SPACE every piece is a word; where all have it, unknown words are one piece too.
    """
    pieces = tokenizer.tokens(list(range(len(tokenizer))))
    starts = np.array([piece.startswith(SPACE) for piece in pieces])
    special = np.isin(np.arange(len(pieces)), (PAD, EOS, UNK))
    symbols = np.array([p.startswith("<") and p.endswith(">") for p in pieces])
    ordinary = starts[~special & ~symbols]
    if not ordinary.any():
        return ~special | (np.arange(len(pieces)) == UNK)
    starts[UNK] = ordinary.all()
    return starts
