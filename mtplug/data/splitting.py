"""Long texts cut into pieces: behind a sentence where one ends near by, else between words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from mtplug.data.tokenizers import Tokenizer

_WIDE_ENDS = ("。", "！", "？")
_ENDS = (".", "!", "?", *_WIDE_ENDS)
"""What a sentence ends with where a space follows, which it need not behind the wide ones."""
_CLOSING = "\"')]»”’」』）"
_NEAR = 6
"""Tokens on both sides of a cut that tell where it is; a word that is longer may be torn."""


def split(
    sides: Sequence[tuple[Tokenizer, list[int]]], limit: int, heads: Sequence[Sequence[int]] = ()
) -> list[list[list[int]]]:
    """As many pieces of each side, none longer than `limit`, at the same share of each.

    What stands in front of a text or behind it and tells of the whole of it, such as a language tag, each piece has
    too. A piece is empty where a side is too short to have part in it.

    Args:
        sides: of a text and its translation, or of one text.
        limit: tokens of a piece, at most.
        heads: of `framed`.
    """
    parts = [framed(tokenizer, ids, heads) for tokenizer, ids in sides]
    rooms = [max(limit - len(head) - len(tail), 1) for head, _, tail in parts]
    # A quarter of the room lets cuts move to where they do least harm.
    pieces = zip(parts, rooms, strict=True)
    count = max(-(-len(body) // (room - room // 4)) for (_, body, _), room in pieces)
    found = []
    for (tokenizer, _), (head, body, tail), room in zip(sides, parts, rooms, strict=True):
        cuts = [0]
        for k in range(1, count):
            cuts.append(
                max(cuts[-1], _cut_near(len(body) * k // count, room // 8, tokenizer, body))
            )
        bounds = itertools.pairwise([*cuts, len(body)])
        found.append([head + body[a:b] + tail if a < b else [] for a, b in bounds])
    return found


def truncated(
    tokenizer: Tokenizer, ids: list[int], limit: int, heads: Sequence[Sequence[int]] = ()
) -> list[int]:
    """The first `limit` tokens of a text, with what tells of the whole of it."""
    head, body, tail = framed(tokenizer, ids, heads)
    return head + body[: max(limit - len(head) - len(tail), 0)] + tail


def framed(
    tokenizer: Tokenizer, ids: list[int], heads: Sequence[Sequence[int]]
) -> tuple[list[int], list[int], list[int]]:
    """(what stands in front, the text, what stands behind it)

    Args:
        heads: beside what the tokenizer's `frame` tells, sequences in front that tell of a whole text.
    """
    start, behind = tokenizer.frame(ids)
    end = len(ids) - behind
    for head in heads:
        if ids[start : start + len(head)] == list(head):
            start += len(head)
            break
    return ids[:start], ids[start:end], ids[end:]


def _cut_near(place: int, distance: int, tokenizer: Tokenizer, ids: list[int]) -> int:
    """The best place for a cut that is no further than `distance` from one, and of equals the nearest."""
    places = sorted(
        range(max(place - distance, 0), min(place + distance, len(ids)) + 1),
        key=lambda p: abs(p - place),
    )
    rows = [
        row
        for p in places
        for row in (
            ids[max(p - _NEAR, 0) : p],
            ids[p : p + _NEAR],
            ids[max(p - _NEAR, 0) : p + _NEAR],
        )
    ]
    texts = tokenizer.decode(rows)
    harms = [_harm(*texts[n : n + 3]) for n in range(0, len(texts), 3)]
    return places[harms.index(min(harms))]


def _harm(before: str, after: str, whole: str) -> int:
    joined, between_words = before + after == whole, f"{before} {after}".strip() == whole.strip()
    if joined and after[:1].isspace():
        between_words = True  # of bytes, whose texts keep the blank that they begin with
    said = before.rstrip(_CLOSING)
    if (between_words and said.endswith(_ENDS)) or (joined and said.endswith(_WIDE_ENDS)):
        return 0
    if between_words:
        return 1
    return 2 if joined else 3  # bytes of a character can be torn
