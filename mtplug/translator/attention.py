"""Which token of a translation looked at which of the source, and so which word."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mtplug.architectures.base import Model
from mtplug.data.separated import SEPARATOR, Separated
from mtplug.data.splitting import framed
from mtplug.data.tokenizers import Tokenizer
from mtplug.search.coverage import cross_attention
from mtplug.tasks.base import Task
from mtplug.translator.result import Translation, numbered, words_of

if TYPE_CHECKING:
    from mtplug.translator.translator import Translator


def attend(
    translator: Translator,
    model: Model,
    texts: Sequence[str],
    pieces: list[list[list[int]]],
    readable: list[list[Translation]],
) -> None:
    """Fill in what translations tell of cross-attention, if the architecture has any and there is a source.

    Args:
        texts: addressed.
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
    for text, parts, row in zip(texts, pieces, readable, strict=True):
        tokens = [t for ids in parts for t in source.tokens(ids)]
        read, spaced = source_words(translator.task, text, parts), translator.spaced(text)
        for translation in row:
            translation.source_tokens = tokens
            of = blocks.get(id(translation), {})
            translation.attention = _block_diagonal([of[k] for k in range(len(parts))])
            written = target_words(target, translation.parts, spaced, SEPARATOR in text)
            translation.word_alignment = word_alignment(translation, read, written)


def why_not(translator: Translator) -> str:
    """Why there is no attention to show; empty if there is."""
    if translator.task.continues:
        return "this run continues its text, which leaves no source to align"
    batch = next(translator.batches([([], [])], 1))
    if cross_attention(translator.model, batch) is None:
        return "this architecture has no cross-attention to show"
    return ""


def word_alignment(
    translation: Translation, source_words: list[int], target_words: list[int]
) -> list[tuple[int, int]]:
    """`Translation.word_alignment`, from its attention and the words that tokens of both sides are part of."""
    pairs = {(source_words[s], target_words[t]) for s, t in translation.alignment or ()}
    return sorted((s, t) for s, t in pairs if min(s, t) >= 0)


def source_words(task: Task, text: str, pieces: list[list[int]]) -> list[int]:
    """For each token that is read of an addressed text the number of its word, as blanks part them; -1 of what is no word
    of it, such as a tag.

    Args:
        pieces: ids, each with what tells of the whole text in front.
    """
    if not pieces:
        return []
    tokenizer = task.source_tokenizer
    first, *others = pieces
    told = len(framed(tokenizer, first, task.heads)[0])
    whole = [*first, *(i for ids in others for i in ids[told:])]
    rest = _as_given(tokenizer, whole, tokenizer.plain(task.bare(text)))
    head, found = rest[:told], rest[: len(first)]
    rest = rest[len(first) :]
    for ids in others:
        found += head + rest[: len(ids) - told]
        rest = rest[len(ids) - told :]
    return found


def _as_given(tokenizer: Tokenizer, ids: list[int], text: str) -> list[int]:
    """`words_of`, numbered as in the text that the ids are of: SentencePiece writes an unknown character as a word of its
    own, and a glossary may have put words between those of the text."""
    plain = tokenizer.decode([ids[:n] for n in range(len(ids) + 1)])
    joined = [one.replace(" \u2047 ", "\u2047") for one in plain]
    given = text.casefold().split()
    for texts in (joined, plain):
        read = texts[-1].casefold().split()
        if read == given[: len(read)] or len(read) == len(given):
            return numbered(texts)
    number = [-1] * len(read)
    matcher = difflib.SequenceMatcher(None, read, given, autojunk=False)
    for _, start, end, at, stop in matcher.get_opcodes():
        for n in range(start, end if stop > at else start):
            number[n] = min(at + n - start, stop - 1)
    return [number[word] if word >= 0 else -1 for word in numbered(plain)]


def target_words(
    tokenizer: Tokenizer, pieces: list[list[int]], spaced: bool, separated: bool
) -> list[int]:
    """For each token of a translation the number of its word; -1 of one that writes nothing.

    Args:
        pieces: ids of each piece of the text.
        spaced: whether blanks stand between them.
        separated: whether the separator of a task of documents is written.
    """
    found: list[int] = []
    count = 0
    for ids in pieces:
        parts = [ids]
        if isinstance(tokenizer, Separated) and not separated:
            parts = tokenizer.parts(ids)
        for n, part in enumerate(parts):
            own = words_of(tokenizer, part)
            begun = count if spaced else max(count - 1, 0)  # without a blank, the last word goes on
            found += [-1] * bool(n) + [begun + word if word >= 0 else -1 for word in own]
            count = max([count, *(begun + word + 1 for word in own)])
    return found


def _block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    whole = np.zeros((sum(len(b) for b in blocks), sum(b.shape[1] for b in blocks)), np.float32)
    row = column = 0
    for block in blocks:
        whole[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return whole
