"""What a translator gives: a translation with its tokens, and which words they belong to."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from mtplug.data.tokenizers import Tokenizer


@dataclass
class Translation:
    """One translation of a text.

    Attributes:
        text: the translation.
        score: what the search ranked it by.
        tokens: its subwords.
        token_scores: log-probability of each, `</s>` last, in nats.
        finished: False if the search's length limit cut it off.
        unmet: wishes that it does not meet, such as a required phrase.
        notes: what happened to the text on the way, such as that it was cut.
        source_tokens: the source's subwords; with attention only.
        attention: (target tokens, source tokens) cross-attention, without `</s>`; if asked for.
        word_alignment: (source word, target word) for each two of which a token of the target word attends most
            to a token of the source word; words are separated by blanks. With attention only.
    """

    text: str
    score: float
    tokens: list[str]
    token_scores: list[float]
    finished: bool
    unmet: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source_tokens: list[str] | None = None
    attention: np.ndarray | None = None
    word_alignment: list[tuple[int, int]] | None = None
    parts: list[list[int]] = field(default_factory=list, repr=False)
    """ids, for each piece that the source was split into"""

    @property
    def alignment(self) -> list[tuple[int, int]] | None:
        """For each token of the translation (number of the source token it looked at most, its own)."""
        if self.attention is None:
            return None
        return [(int(row.argmax()), t) for t, row in enumerate(self.attention) if row.size]


def words_of(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """For each token the number, from 0, of the word it is part of; -1 of one that writes nothing."""
    return numbered(tokenizer.decode([ids[:n] for n in range(len(ids) + 1)]))


def numbered(texts: list[str]) -> list[int]:
    """`words_of` the tokens of a text that has them one after the other."""
    words = [text.split() for text in texts]
    return [
        len(now) - 1 if "".join(before) != "".join(now) else -1
        for before, now in itertools.pairwise(words)
    ]
