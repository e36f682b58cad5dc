"""Language tags: which language a many-to-many model shall write (Johnson et al. 2017).

A tag such as `<2de>` stands in front of the source text, in the corpora of a run as in what a user
gives. It is one token, whatever the tokenizer. `<2de:en>` says the source's language, too, for models that are told it
(`mtplug.data.directions`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mtplug.data.tokenizers import Tokenizer, Wrapper
from mtplug.errors import UserError, did_you_mean

TAGS = "tags.json"
"""Beside a tokenizer that was another run's: the languages of its tags."""
TAG = re.compile(r"\s*(<2([^>\s]+)>)\s*")
"""A tag in front of a text, with the blanks around it."""


class UnknownTag(UserError):
    """A text begins with a tag that the run does not have."""


def tag(language: str, source: str = "") -> str:
    return f"<2{language}:{source}>" if source else f"<2{language}>"


def head(text: str, languages: Iterable[str]) -> str:
    """The tag of one of the languages in front of a text, with the blanks around it; empty if there is none."""
    found = TAG.match(text)
    return found[0] if found and found.group(2) in languages else ""


def check_tag(text: str, languages: Iterable[str]) -> bool:
    """Whether a text begins with the tag of one of the languages.

    Raises:
        UnknownTag: it begins with another; `<25>` is none.
    """
    found, known = TAG.match(text), list(languages)
    if found and found.group(2) not in known and found.group(2)[0].isalpha():
        raise UnknownTag(
            f"the run has no language tag {found.group(1)}{did_you_mean(found.group(2), known)}"
        )
    return bool(head(text, known))


def without_tag(text: str) -> str:
    """A text without the tag in front of it, whatever its language."""
    found = TAG.match(text)
    return text[found.end() :] if found else text


class Tagged(Wrapper):
    """A tokenizer that knows tags in front of a text; their ids come after those of its vocabulary.

    Args:
        inner: what cuts the rest of the text.
        languages: that there is a tag for.
    """

    def __init__(self, inner: Tokenizer, languages: Iterable[str]):
        super().__init__(inner)
        self.ids = {tag(one): len(inner) + n for n, one in enumerate(sorted(languages))}
        self.prefixes = frozenset(self.ids.values())

    def __len__(self) -> int:
        return len(self.inner) + len(self.ids)

    def encode(self, texts: list[str]) -> list[list[int]]:
        tags, rest = self._split(texts)
        return [head + list(ids) for head, ids in zip(tags, self.inner.encode(rest), strict=True)]

    def sample(self, texts: list[str], seeds: list[int]) -> list[list[int]]:
        tags, rest = self._split(texts)
        found = self.inner.sample(rest, seeds)
        return [head + list(ids) for head, ids in zip(tags, found, strict=True)]

    def _split(self, texts: list[str]) -> tuple[list[list[int]], list[str]]:
        """The tag of each text, if any, and what follows it; a tag alone is an empty text."""
        tags, rest = [], []
        for text in texts:
            found = TAG.match(text)
            known = found is not None and found.group(1) in self.ids
            body = text[found.end() :] if known and found else text
            tags.append([self.ids[found.group(1)]] if known and found and body else [])
            rest.append(body)
        return tags, rest

    def decode(self, ids: list[list[int]]) -> list[str]:
        return self.inner.decode([[i for i in row if i not in self.prefixes] for row in ids])

    def tokens(self, ids: list[int]) -> list[str]:
        written = {i: one for one, i in self.ids.items()}
        inner = iter(self.inner.tokens([i for i in ids if i not in written]))
        return [written.get(i) or next(inner) for i in ids]
