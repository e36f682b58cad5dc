"""Words of any language, well enough to count and to compare them; and how two texts differ in them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from difflib import SequenceMatcher

from mtplug.data.scripts import UNSPACED

INSIDE = "'’.,-"  # within a word or number, when there is a letter or digit on both sides

Span = tuple[int, int]
_is_unspaced = re.compile(f"[{UNSPACED}]").match


def spans(text: str) -> list[Span]:
    """Where the tokens of `text` begin and end: words, single punctuation marks, single characters of unspaced scripts."""
    found: list[Span] = []
    start = -1  # of the word being read
    for i, char in enumerate(text):
        category = unicodedata.category(char)
        if category[0] == "M" and found and start < 0 and found[-1][1] == i:
            found[-1] = (found[-1][0], i + 1)  # a combining mark belongs to what it stands on
            continue
        whole = category[0] in "LNMC" and not char.isspace() and not unspaced(char)
        if not whole and start >= 0 and char in INSIDE:
            whole = text[i - 1].isalnum() and text[i + 1 : i + 2].isalnum()
            whole = whole and not unspaced(text[i + 1])
        if whole:
            start = i if start < 0 else start
            continue
        if start >= 0:
            found.append((start, i))
            start = -1
        if not char.isspace():
            found.append((i, i + 1))
    return [*found, (start, len(text))] if start >= 0 else found


def words(text: str) -> list[str]:
    """The tokens of `spans`."""
    return [text[a:b] for a, b in spans(text)]


def unspaced(char: str) -> bool:
    """Is it of a script that is written without spaces, where each character stands for itself?"""
    return _is_unspaced(char) is not None


def is_unspaced(texts: Iterable[str]) -> bool:
    """Are the texts mostly written without spaces, so that their lengths count characters?"""
    letters = [char for text in texts for char in text if char.isalnum()]
    return 2 * sum(map(unspaced, letters)) > len(letters)


def differing(text: str, other: str) -> list[Span]:
    """The parts of `text` that `other` does not have in this order, as spans of neighbouring tokens."""
    ours, theirs = spans(text), words(other)
    tokens = [text[a:b] for a, b in ours]
    found = []
    for what, first, last, _, _ in SequenceMatcher(
        None, tokens, theirs, autojunk=False
    ).get_opcodes():
        if what in ("delete", "replace"):
            found.append((ours[first][0], ours[last - 1][1]))
    return found
