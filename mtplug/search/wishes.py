"""What a user asks of translations, in words: prefixes, required phrases, terms, forbidden words."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mtplug.data.corpora import one_line, whole_characters
from mtplug.data.scripts import UNSPACED
from mtplug.data.subword_sampling import SPACE
from mtplug.data.tokenizers import Tokenizer, pieces_of
from mtplug.errors import UserError
from mtplug.search.base import Request

_is_word = re.compile(rf"[^\W{UNSPACED}]").match
"""Is a text's first character a letter or digit of a script that puts spaces between words?"""


@dataclass
class Wishes:
    """What one sentence's translation must and must not hold.

    Attributes:
        prefix: how it begins.
        required: phrases it holds; of an entry with several forms one is due.
        forbidden: words and phrases that it does not hold.

    Halves of characters, such as "\\ud800", are replaced.

    Raises:
        TypeError: a text stands where a list is due, which would be taken for its letters, or something else where a
            text is.
        UserError: a phrase has no words.
    """

    prefix: str = ""
    required: list[list[str]] = field(default_factory=list)
    forbidden: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("required", "forbidden"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"Wishes: {name} is a list of phrases, not {getattr(self, name)!r}")
        if not isinstance(self.prefix, str):
            raise TypeError(f"Wishes: prefix is a text, not {self.prefix!r}")
        self.prefix = whole_characters(self.prefix)
        required = [[forms] if isinstance(forms, str) else list(forms) for forms in self.required]
        if not all(required):
            raise UserError("required: an entry has no form of its phrase; leave it out")
        self.required = [checked_phrases(forms, "required") for forms in required]
        self.forbidden = checked_phrases(self.forbidden, "forbidden")

    def unmet(self, text: str) -> list[str]:
        """What a translation fails, one line each."""
        found = [
            f"required: {' | '.join(forms)}"
            for forms in self.required
            if not any(_pattern(form).search(text) for form in forms)
        ]
        if not " ".join(text.split()).startswith(" ".join(self.prefix.split())):
            found.append(f"prefix: {self.prefix}")
        return found + [f"forbidden: {w}" for w in self.forbidden if _pattern(w).search(text)]

    def __bool__(self) -> bool:
        return bool(self.prefix.strip() or self.required or self.forbidden)


def checked_phrases(phrases: Iterable[str], name: str) -> list[str]:
    """Phrases of the setting `name`, halves of characters replaced.

    Raises:
        TypeError: one is no text.
        UserError: one has no words, so that it would be found everywhere.
    """
    found = list(phrases)
    for phrase in found:
        if not isinstance(phrase, str):
            raise TypeError(f"{name} holds phrases, not {phrase!r}")
        if not phrase.strip():
            raise UserError(f"{name}: {phrase!r} has no words; leave it out")
    return [whole_characters(phrase) for phrase in found]


class WordPattern:
    """Finds a phrase as whole words; in scripts without spaces, and beside them, anywhere.

    Searches as a compiled regular expression does. It is none, for classes of characters as large as that of
    `_is_word` take a millisecond to compile, which would be due for every phrase of every sentence.

    Args:
        phrase: its words may be parted by any whitespace.
        flags: of `re`, such as `re.IGNORECASE`.
    """

    def __init__(self, phrase: str, flags: int = 0):
        words = phrase.split()
        self._words = re.compile(r"\s+".join(map(re.escape, words)), flags)
        self._left = bool(words and _is_word(words[0]))
        self._right = bool(words and _is_word(words[-1][-1]))

    def match(self, text: str, start: int = 0) -> re.Match[str] | None:
        """The phrase as it stands in `text` at `start`."""
        found = self._words.match(text, start)
        return found if found and self._is_whole(found) else None

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        start = 0
        while start <= len(text) and (found := self._words.search(text, start)):
            whole = self._is_whole(found)
            if whole:
                yield found
            start = max(found.end() if whole else 0, found.start() + 1)

    def search(self, text: str) -> re.Match[str] | None:
        return next(self.finditer(text), None)

    def _is_whole(self, found: re.Match[str]) -> bool:
        text, (start, end) = found.string, found.span()
        cut_left = self._left and start > 0 and _is_word(text, start - 1)
        return not cut_left and not (self._right and _is_word(text, end))


def folded(text: str) -> str:
    """The same for texts that `re.IGNORECASE` takes for the same: of i and I also those with a dot and those without."""
    return text.casefold().replace("i\u0307", "i").replace("ı", "i")


_pattern = functools.lru_cache(2**16)(WordPattern)  # forbidden words are those of every sentence


class Speller:
    """Wishes in words to requests in ids.

    Args:
        tokenizer: of the target side.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        pieces = pieces_of(tokenizer)
        marked = any(p.startswith(SPACE) for p in pieces)
        inside = [bool(marked and _is_word(p) and not p.startswith("<")) for p in pieces]
        self.word_inside = torch.tensor(inside) if any(inside) else None
        self.spellings = functools.lru_cache(2**16)(self._spellings)

    def request(self, wishes: Wishes, spaces: bool = True) -> Request:
        """The ids of what is wished; `spaces`: does the language put spaces between words?"""
        prefix = one_line(wishes.prefix)
        return Request(
            self.tokenizer.encode([prefix])[0] if prefix else [],
            [
                [s for form in forms for s in self.spellings(form, spaces)]
                for forms in wishes.required
            ],
            [ids for word in wishes.forbidden for ids in self.spellings(word, spaces)],
            self.word_inside,
            closed=bool(prefix) and spaces and wishes.prefix != wishes.prefix.rstrip(),
        )

    def _spellings(self, phrase: str, spaces: bool = True) -> list[list[int]]:
        """As a phrase is written after a space and, where no space is due, after another word."""
        plain = self.tokenizer.encode([phrase])[0]
        found = [plain]
        if not spaces or not _is_word(phrase):
            # Behind something that no vocabulary has a longer piece with.
            before = self.tokenizer.encode(["▀"])[0]
            after = self.tokenizer.encode(["▀" + phrase])[0]
            if after[: len(before)] == before and after[len(before) :]:
                found.append(after[len(before) :])
        return [list(ids) for ids in dict.fromkeys(map(tuple, found))]

    def spelled(self, ids: list[int], words: Iterable[str]) -> list[list[int]]:
        """How the translation `ids` spells those of the words that it holds."""
        text = self.tokenizer.decode([ids])[0]
        matches = [match for word in words if (match := _pattern(word).search(text))]
        if not matches:
            return []
        starts = self.tokenizer.decode([ids[:k] for k in range(len(ids) + 1)])
        found = []
        for match in matches:
            end = next((k for k, s in enumerate(starts) if len(s) >= match.end()), len(ids))
            tails = self.tokenizer.decode([ids[j:end] for j in range(end)])
            holding = [j for j, tail in enumerate(tails) if match.group().strip() in tail]
            found.append(ids[max(holding, default=0) : end])
        return [spelling for spelling in found if spelling]


def read_glossary(path: str | Path, setting: str) -> list[tuple[str, list[str]]]:
    """Source terms and the forms of their translations, from lines of
    `source term <TAB> target term [| other form …]`; `#` starts a comment.

    Args:
        setting: that named the file, for messages.

    Raises:
        UserError: the file is missing, not UTF-8, or a line has no tab.
    """
    found = []
    for number, line in _lines(path, setting):
        source, tab, target = line.partition("\t")
        forms = [form.strip() for form in target.split("|") if form.strip()]
        if not tab or not source.strip() or not forms:
            raise UserError(f"{path}:{number}: expected source term, a tab, target term")
        found.append((source.strip(), forms))
    return found


class Terminology:
    """A glossary's terms, found in sentences; see :func:`read_glossary`."""

    def __init__(self, path: str):
        found = read_glossary(path, "search.terminology")
        # Of terms that overlap the longest wins.
        found.sort(key=lambda entry: -len(entry[0]))
        self.entries = [
            (folded(source.split()[0]), WordPattern(source, re.IGNORECASE), forms)
            for source, forms in found
        ]

    def match(self, source: str) -> list[list[str]]:
        """The forms of every term that occurs as whole words, whatever its case."""
        found: list[tuple[int, list[str]]] = []
        taken: list[tuple[int, int]] = []
        text = folded(source)
        for first, pattern, forms in self.entries:
            if first not in text:  # thousands of terms are not there
                continue
            for m in pattern.finditer(source):
                if all(m.end() <= start or end <= m.start() for start, end in taken):
                    taken.append(m.span())
                    if forms not in [f for _, f in found]:
                        found.append((m.start(), forms))
        return [forms for _, forms in sorted(found, key=lambda item: item[0])]


class Policy:
    """What a search's settings wish of every sentence.

    Args:
        config: of the strategy; read are `forbidden`, `forbidden_file`, `terminology`.
    """

    def __init__(self, config: Any):
        self.forbidden = checked_phrases(getattr(config, "forbidden", ()), "search.forbidden")
        if path := getattr(config, "forbidden_file", ""):
            self.forbidden += _read_once(_phrases, path)
        path = getattr(config, "terminology", "")
        self.terminology = _read_once(Terminology, path) if path else None

    def wishes(self, source: str, own: Wishes | None) -> Wishes:
        """Those of all sentences and those of this one."""
        own = own or Wishes()
        required = list(own.required)
        required += [f for f in self.terms(source) if f not in required]
        return Wishes(own.prefix, required, [*self.forbidden, *own.forbidden])

    def terms(self, source: str) -> list[list[str]]:
        """The forms of every term of the glossary that occurs in a text, if there is one."""
        return self.terminology.match(source) if self.terminology is not None else []


def _phrases(path: str) -> list[str]:
    return [line for _, line in _lines(path, "search.forbidden_file")]


def _read_once(read: Callable[[str], Any], path: str) -> Any:
    """What `read` makes of a file, again only when that has changed: a service asks for each request."""
    try:
        found = Path(path).stat()
    except OSError:
        return read(path)  # which says what is wrong
    return _remembered(read, path, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=8)
def _remembered(read: Callable[[str], Any], path: str, *state: int) -> Any:
    return read(path)


def _lines(path: str | Path, setting: str) -> Iterable[tuple[int, str]]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{setting}: {path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{setting}: {path} is not UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip("\r")
