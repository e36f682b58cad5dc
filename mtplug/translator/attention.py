"""Which token of a translation looked at which of the source, and so which word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mtplug.architectures.base import Model
from mtplug.data.tokenizers import Tokenizer
from mtplug.search.coverage import cross_attention
from mtplug.translator.result import Translation, words_of

if TYPE_CHECKING:
    from mtplug.translator.translator import Translator


def attend(
    translator: Translator,
    model: Model,
    pieces: list[list[list[int]]],
    readable: list[list[Translation]],
) -> None:
    """Fill in what translations tell of cross-attention, if the architecture has any and there is a source.

    Args:
        pieces: for each text the ids of its pieces.
        readable: for each text its translations.
    """
    if translator.task.continues:
        return
    jobs = [
        (ids, translation.parts[k], translation, k)
        for parts, row in zip(pieces, readable, strict=True)
        for translation in row
        for k, ids in enumerate(parts)
    ]
    blocks: dict[int, dict[int, np.ndarray]] = {}
    for batch in translator.batches([(source, target) for source, target, _, _ in jobs], 1):
        weights = cross_attention(model, batch)
        if weights is None:
            return
        for i, matrix in zip(batch.ids.tolist(), weights, strict=True):
            blocks.setdefault(id(jobs[i][2]), {})[jobs[i][3]] = matrix[:-1, :-1].cpu().numpy()
    source, target = translator.task.source_tokenizer, translator.task.target_tokenizer
    for parts, row in zip(pieces, readable, strict=True):
        tokens = [t for ids in parts for t in source.tokens(ids)]
        source_words = words_of(source, [i for ids in parts for i in ids])
        for translation in row:
            translation.source_tokens = tokens
            of = blocks.get(id(translation), {})
            translation.attention = _block_diagonal([of[k] for k in range(len(parts))])
            translation.word_alignment = word_alignment(translation, source_words, target)


def why_not(translator: Translator) -> str:
    """Why there is no attention to show; empty if there is."""
    if translator.task.continues:
        return "this run continues its text, which leaves no source to align"
    batch = next(translator.batches([([], [])], 1))
    if cross_attention(translator.model, batch) is None:
        return "this architecture has no cross-attention to show"
    return ""


def word_alignment(
    translation: Translation, source_words: list[int], target: Tokenizer
) -> list[tuple[int, int]]:
    """`Translation.word_alignment`, from its attention.

    Args:
        source_words: as `words_of` gives them.
        target: the tokenizer of the translation.
    """
    words = words_of(target, [i for part in translation.parts for i in part])
    pairs = {(source_words[s], words[t]) for s, t in translation.alignment or ()}
    return sorted((s, t) for s, t in pairs if min(s, t) >= 0)


def _block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    whole = np.zeros((sum(len(b) for b in blocks), sum(b.shape[1] for b in blocks)), np.float32)
    row = column = 0
    for block in blocks:
        whole[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return whole
