"""Glossaries: reading, finding terms, writing tags, and making one of a parallel text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mtplug.data.scripts import UNSPACED
from mtplug.search import WordPattern, read_glossary
from mtplug.search.wishes import folded

BEGIN, MIDDLE, END = "<term>", "<target>", "</term>"
TAGS = (BEGIN, MIDDLE, END)

_UNIT = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
"""Where a term may begin: at a word, at a character of a script without spaces, at a symbol."""
_TAGGED = re.compile(rf"{BEGIN}\s*(.*?)\s*{MIDDLE}.*?{END}")


@dataclass(frozen=True)
class Term:
    """A term of a glossary in a sentence.

    Attributes:
        start, end: where it stands in the source.
        forms: its translations, the usual one first.
        target: the one that is due here.
    """

    start: int
    end: int
    forms: tuple[str, ...]
    target: str


class Glossary:
    """Terms and their translations.

    Args:
        entries: source term, and the forms of its translation.
    """

    def __init__(self, entries: Iterable[tuple[str, tuple[str, ...]]]):
        self.by_unit: dict[str, list[tuple[WordPattern, tuple[str, ...]]]] = {}
        # Of terms that begin at one place the longest wins.
        for source, forms in sorted(entries, key=lambda entry: -len(entry[0])):
            first = _UNIT.search(source)
            if first:
                pattern = WordPattern(source, re.IGNORECASE)
                self.by_unit.setdefault(folded(first.group()), []).append((pattern, forms))

    @classmethod
    def read(cls, path: str | Path, setting: str = "glossary") -> Glossary:
        """A file as `mtplug.search.read_glossary` takes it, which says what it raises."""
        return cls((source, tuple(forms)) for source, forms in read_glossary(path, setting))

    def terms(self, source: str) -> list[Term]:
        """The terms in a sentence, from left to right, none over another; the usual form is due."""
        found: list[Term] = []
        end = 0
        for unit in _UNIT.finditer(source):
            if unit.start() < end:
                continue
            for pattern, forms in self.by_unit.get(folded(unit.group()), ()):
                if match := pattern.match(source, unit.start()):
                    end = match.end()
                    found.append(Term(match.start(), end, forms, forms[0]))
                    break
        return found

    def found(self, source: str, target: str) -> list[Term]:
        """The terms in a sentence of which a form stands in its translation; that form is due."""
        return [
            Term(term.start, term.end, term.forms, form)
            for term in self.terms(source)
            if (form := next((f for f in term.forms if WordPattern(f).search(target)), None))
        ]


def tagged(source: str, terms: Iterable[Term]) -> str:
    """A sentence with what is due written behind each term."""
    parts, at = [], 0
    for term in sorted(terms, key=lambda t: t.start):
        parts += [source[at : term.start], BEGIN, " ", source[term.start : term.end], " ", MIDDLE,
                  " ", term.target, " ", END]  # fmt: skip
        at = term.end
    return "".join([*parts, source[at:]])


def untagged(source: str) -> str:
    """The inverse of `tagged`, of tags that were written by hand too."""
    return _TAGGED.sub(r"\1", source)


def extract(
    pairs: Iterable[tuple[str, str]], least: int = 5, dice: float = 0.4
) -> dict[str, list[str]]:
    """Single words that are nearly always translated alike, by Dice's coefficient over sentences.

    Args:
        pairs: of the training data.
        least: sentences in which a word must occur.
        dice: 2 · together / (sentences with the one + sentences with the other), at least.

    Returns:
        For each source word, in lower case, its translation, then other words that occur with it and
        share its first four letters, most frequent first.
    """
    sources: Counter[str] = Counter()
    targets: Counter[str] = Counter()
    both: Counter[tuple[str, str]] = Counter()
    for source, target in pairs:
        left = {w.lower() for w in re.findall(r"[^\W\d_]{3,}", source)}
        right = set(re.findall(r"[^\W\d_]{3,}", target))
        sources.update(left)
        targets.update(right)
        both.update((s, t) for s in left for t in right)
    candidates: dict[str, list[tuple[float, int, str]]] = {}
    for (s, t), together in both.items():
        if together >= 2 and sources[s] >= least:
            score = 2 * together / (sources[s] + targets[t])
            candidates.setdefault(s, []).append((score, together, t))
    found = {}
    for source, scored in sorted(candidates.items()):
        score, _, best = max(scored)
        if score < dice:
            continue
        stem = best[:4].lower()
        others = [(n, t) for _, n, t in scored if t != best and t.lower().startswith(stem)]
        found[source] = [best, *(t for _, t in sorted(others, reverse=True))]
    return found
