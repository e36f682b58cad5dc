"""Words with factors to ids: every piece of a word has the word's factors, and its id says all of them.

With V pieces and N₁, N₂, … values of the factors, the id of piece p with values f₁, f₂, … is p + V · (f₁ + N₁ · (f₂ + N₂ · …)).
Value 0 is for text without factors, so that ids below V are the pieces themselves, special symbols among them. Stores,
batches and searches take such ids as any others; `mtplug_factors.model` takes them apart, and no table has as many rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtplug.data.tokenizers import UNK, Tokenizer, Wrapper
from mtplug.data.words import separated
from mtplug.errors import UserError, did_you_mean
from mtplug.files import damaged, read_json
from mtplug.registry import Selected, component_field

MOST = 1 << 31
"""Ids, at most; stores keep 32 bits of each."""


@dataclass
class FactoredConfig:
    """Source words with factors, written word￨NOUN￨title, and plain text as target; each side has its own vocabulary."""

    factors: list[str] = field(default_factory=lambda: ["factor"])
    """their names, in the order in which words have them; the values are those of the training text"""
    separator: str = "￨"
    """what stands between a word and its factors (U+FFE8, which text does not have); `|` for text made for Marian or Moses"""
    inner: Selected = component_field("tokenizers", "sentencepiece")
    """what cuts the words, and the target; its `joint` is always false"""

    def __post_init__(self) -> None:
        if not self.factors or len(set(self.factors)) < len(self.factors):
            raise ValueError("factors: name one at least, and none twice")
        if not self.separator or separated(self.separator) != [self.separator]:
            raise ValueError("separator: give a character that is no blank")
        if getattr(self.inner.config, "joint", False):
            self.inner = replace(self.inner, config=replace(self.inner.config, joint=False))


class Factored(Wrapper):
    """Takes lines in which every word has its factors, and lines without any, which are cut as by `inner`.

    Symbols in angle brackets, such as tags, need no factors.

    Args:
        inner: what cuts the words.
        values: of each factor, by its name.
        bare: whether the training text had lines without factors.
        separator: between a word and its factors.
    """

    def __init__(self, inner: Tokenizer, values: dict[str, list[str]], bare: bool, separator: str):
        super().__init__(inner)
        self.values, self.bare, self.separator = values, bare, separator
        self.sizes = [len(own) + 1 for own in values.values()]
        self._numbers = [{value: n for n, value in enumerate(own, 1)} for own in values.values()]
        self._right = separator.join(["word", *values])
        if len(self) > MOST:
            raise UserError(
                f"tokenizer.factors: {len(inner):,} pieces with {' × '.join(map(str, self.sizes))} values are "
                f"{len(self):,} ids, and {MOST:,} are possible; leave out a factor, or some of its values"
            )

    def __len__(self) -> int:
        return len(self.inner) * math.prod(self.sizes)

    def encode(self, texts: list[str]) -> list[list[int]]:
        rows = self._rows(texts)
        units = list(dict.fromkeys(unit for row in rows for unit, _ in row))
        cut = dict(zip(units, self.inner.encode(units), strict=True))
        return [[at + i for unit, at in row for i in cut[unit]] for row in rows]

    def sample(self, texts: list[str], seeds: list[int]) -> list[list[int]]:
        rows = self._rows(texts)
        own = [(s + n) % MOST for row, s in zip(rows, seeds, strict=True) for n in range(len(row))]
        cut = iter(self.inner.sample([unit for row in rows for unit, _ in row], own))
        return [[at + i for _, at in row for i in next(cut)] for row in rows]

    def _rows(self, texts: Iterable[str]) -> list[list[tuple[str, int]]]:
        """Of each text what is cut by itself, its words or, without factors, the whole, and what their factors add to ids."""
        known: dict[str, tuple[str, int]] = {}
        rows = []
        for text in texts:
            words = separated(text) if self.separator in text else []
            known |= {word: self._unit(word) for word in words if word not in known}
            rows.append([known[word] for word in words] or [(text, 0)])
        return rows

    def _unit(self, word: str) -> tuple[str, int]:
        surface, *given = word.split(self.separator)
        if not given and word.startswith("<") and word.endswith(">"):
            return word, 0
        if len(given) != len(self.sizes):
            raise UserError(
                f"'{word}' has {len(given)} factor{'s' * (len(given) != 1)}, tokenizer.factors names {len(self.sizes)} "
                f"({self._right})"
            )
        if not all([surface, *given]):
            raise UserError(f"'{word}': the word or a factor is empty")
        at, step = 0, len(self.inner)
        for name, numbers, value in zip(self.values, self._numbers, given, strict=True):
            if value not in numbers:
                near = did_you_mean(value, numbers)
                raise UserError(f"'{word}': the training text has no {name} '{value}'{near}")
            at, step = at + step * numbers[value], step * (len(numbers) + 1)
        return surface, at

    def unfit(self, texts: Iterable[str]) -> str:
        plain = []
        for number, text in enumerate(texts, 1):
            try:
                self._rows([text])
            except UserError as error:
                return f"not as tokenizer.factors says in line {number}: {error}"
            if not self.bare and text.strip() and self.separator not in text:
                return (
                    f"without factors, which all training text had ({self._right}): line {number}"
                )
            plain.append(self.plain(text))
        return self.inner.unfit(plain)

    def plain(self, text: str) -> str:
        return without_factors(text, self.separator)

    def unknown(self, ids: np.ndarray) -> int:
        return int((ids[ids < len(self)] % len(self.inner) == UNK).sum())

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Texts without factors."""
        return self.inner.decode([[i % len(self.inner) for i in row] for row in ids])

    def tokens(self, ids: list[int]) -> list[str]:
        found = []
        for i in ids:
            rest, piece = divmod(i, len(self.inner))
            written = self.inner.tokens([piece])
            for own in self.values.values() if rest else ():
                rest, value = divmod(rest, len(own) + 1)
                written.append(["", *own][value])
            found.append(self.separator.join(written))
        return found

    def save(self, folder: Path, side: str) -> None:
        super().save(folder, side)
        text = json.dumps({"values": self.values, "bare": self.bare}, ensure_ascii=False, indent=1)
        (folder / f"{side}.factors.json").write_text(text, encoding="utf-8")


def without_factors(text: str, separator: str) -> str:
    if separator not in text:
        return text
    return " ".join(word.split(separator)[0] for word in separated(text))


class FactoredFactory:
    """Trains or loads the tokenizer of words with factors, and that of the target."""

    joint = False

    def __init__(self, config: FactoredConfig):
        self.config, self.inner = config, config.inner.build()

    @staticmethod
    def check_files(config: FactoredConfig) -> None:
        if check := getattr(config.inner.component.factory, "check_files", None):
            check(config.inner.config)

    @staticmethod
    def why_not(config: FactoredConfig, model: Any) -> str:
        if getattr(model, "takes_factors", False):
            return ""
        return f"{type(model).__name__} does not read factors; take architecture.name=factored_transformer"

    def size(self, side: str) -> int:
        """That of the source is known with the values of the factors."""
        return self.inner.size(side) if side == "target" and hasattr(self.inner, "size") else 0

    def train(self, texts: Iterable[str], side: str) -> Tokenizer:
        try:
            return self.inner.train(texts, side) if side == "target" else self._train(texts, side)
        except UserError as error:  # of a setting, which stands a level lower here
            own = str(error).startswith("tokenizer.factors")
            told = str(error) if own else str(error).replace("tokenizer.", "tokenizer.inner.")
            raise UserError(told) from None

    def _train(self, texts: Iterable[str], side: str) -> Factored:
        separator, names = self.config.separator, self.config.factors
        found: dict[str, set[str]] = {name: set() for name in names}
        bare = False

        def plain() -> Iterator[str]:
            nonlocal bare
            for text in texts:
                bare |= separator not in text
                for word in separated(text) if separator in text else ():
                    # Words with more or fewer are told of, and where they are, when the text is encoded.
                    values = word.split(separator)[1:]
                    for name, value in zip(names, values if len(values) == len(names) else ()):  # noqa: B905
                        found[name].add(value)
                yield without_factors(text, separator)

        words = plain()
        inner = self.inner.train(words, side)
        for _ in words:  # what was not needed to train it
            pass
        (ids,) = inner.encode(["a"])
        if " " not in inner.decode([ids + ids])[0].strip():
            raise UserError(
                f"tokenizer.inner: {self.config.inner.name} does not tell words apart; take sentencepiece or words"
            )
        values = {name: sorted(own - {""}) for name, own in found.items()}
        return Factored(inner, values, bare, separator)

    def load(self, folder: Path, side: str) -> Tokenizer:
        inner = self.inner.load(folder, side)
        if side == "target":
            return inner
        file, advice = folder / f"{side}.factors.json", "restore that file"
        if not file.is_file():
            raise UserError(f"{file} is missing; {advice}")
        told = read_json(file, advice)
        if told.keys() != {"values", "bare"}:
            raise damaged(file, "it does not tell values of factors", advice)
        return Factored(inner, **told, separator=self.config.separator)
