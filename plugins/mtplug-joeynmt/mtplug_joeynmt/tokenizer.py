"""Tokenizer `joeynmt`: text is prepared, cut and joined as JoeyNMT does it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mtplug.data.merged_words import END, GLUE, Words
from mtplug.data.tokenizers import SentencePieceConfig, Tokenizer, Wrapper
from mtplug.data.words import SPACE
from mtplug.errors import UserError
from mtplug.exporting.marian_model import MarianTokenizer, MarianTokenizerFactory
from mtplug.files import read_json


@dataclass
class JoeyTokenizerConfig(SentencePieceConfig):
    """Words, subwords or characters of a model of JoeyNMT, as `mtplug-import joeynmt` takes them over."""


@dataclass
class Steps:
    """What is done with a text, beside looking its pieces up."""

    kind: str
    """sentencepiece, subword-nmt, word or char"""
    lowercase: bool = False
    normalize: bool = False
    """NFKC, plain quotation marks, no blanks before punctuation"""
    moses: str = ""
    """the language whose rules of Moses' tokenizer are applied before; empty: it is not"""
    tags: list[str] = field(default_factory=list)
    """pieces that tell a language, and are left out of what is written"""
    hidden: list[str] = field(default_factory=list)
    """other pieces that are left out"""


class RestrictedWords(Words):
    """Pieces that are not in the vocabulary are cut into those that they were merged of, as subword-nmt does."""

    def _merged(self, word: str, draw: Any = None) -> tuple[str, ...]:
        pieces = super()._merged(word, draw)
        return tuple(part for piece in pieces for part in self._known(piece))

    def _known(self, piece: str) -> list[str]:
        if piece in self.ids:
            return [piece]
        inside = piece.endswith(GLUE)
        found = self._halves.get(piece.removesuffix(GLUE) + ("" if inside else END))
        if found is None:
            return [piece]
        left, right = found[0] + GLUE, found[1].removesuffix(END) + (GLUE if inside else "")
        return [*self._known(left), *(self._known(right) if right else [])]

    @property
    def _halves(self) -> dict[str, tuple[str, str]]:
        """The pair that each piece is merged of."""
        if not hasattr(self, "_pairs"):
            self._pairs: dict[str, tuple[str, str]] = {}
            for pair in self.ranks:
                self._pairs.setdefault("".join(pair), pair)
        return self._pairs

    def __reduce__(self) -> tuple:
        _, arguments = super().__reduce__()
        return type(self), arguments


class Characters(Words):
    """Each character is a piece."""

    def cut(self, text: str) -> list[str]:
        return list(text.replace(" ", SPACE))

    def decode(self, ids: list[list[int]]) -> list[str]:
        return [text.replace(" ", "").replace(SPACE, " ") for text in super().decode(ids)]

    def unfit(self, texts: Iterable[str]) -> str:
        return ""

    def __reduce__(self) -> tuple:
        _, arguments = super().__reduce__()
        return type(self), arguments


KINDS: dict[str, type[Tokenizer]] = {
    "sentencepiece": MarianTokenizer, "subword-nmt": RestrictedWords, "word": Words, "char": Characters,
}  # fmt: skip


class JoeyTokenizer(Wrapper):
    """One side of a model.

    Args:
        inner: one of `KINDS`, which cuts what was prepared.
        steps: how it is prepared, and joined text finished.

    Raises:
        UserError: Moses' tokenizer is among them and not installed.
    """

    def __init__(self, inner: Tokenizer, steps: Steps):
        super().__init__(inner)
        self.steps = steps
        pieces = inner.tokens(list(range(len(inner))))
        self.prefixes = frozenset(i for i, piece in enumerate(pieces) if piece in steps.tags)
        self.left_out = self.prefixes | {i for i, p in enumerate(pieces) if p in steps.hidden}
        self.space = pieces.index(SPACE) if SPACE in pieces else -1
        self.moses = _Moses(steps.moses) if steps.moses else None

    def __reduce__(self) -> tuple:
        return JoeyTokenizer, (self.inner, self.steps)

    def prepare(self, text: str) -> str:
        if self.steps.normalize:
            text = unicodedata.normalize("NFKC", text).translate(QUOTES)
            text = _closed_up(text)
        if self.moses is not None:
            text = self.moses.cut(text, self.steps.normalize)
        return text.lower() if self.steps.lowercase else text

    def finish(self, text: str) -> str:
        if self.moses is not None:
            text = self.moses.join(text)
        return _closed_up(text) if self.steps.normalize else text

    def encode(self, texts: list[str]) -> list[list[int]]:
        return list(map(self._tag_first, self.inner.encode(list(map(self.prepare, texts)))))

    def sample(self, texts: list[str], seeds: list[int]) -> list[list[int]]:
        rows = self.inner.sample(list(map(self.prepare, texts)), seeds)
        return list(map(self._tag_first, rows))

    def _tag_first(self, ids: list[int]) -> list[int]:
        """Without the blank that SentencePiece puts before a tag."""
        tagged = len(ids) > 1 and ids[0] == self.space and ids[1] in self.prefixes
        return ids[1:] if tagged else ids

    def decode(self, ids: list[list[int]]) -> list[str]:
        rows = [[i for i in row if i not in self.left_out] for row in ids]
        return list(map(self.finish, self.inner.decode(rows)))

    def save(self, folder: Path, side: str) -> None:
        super().save(folder, side)
        text = json.dumps(asdict(self.steps), ensure_ascii=False, indent=1)
        (folder / f"{side}.steps.json").write_text(text, encoding="utf-8")


QUOTES = {ord("’"): "'", ord("“"): '"', ord("”"): '"'}


def _closed_up(text: str) -> str:
    """One blank between words, and none before punctuation."""
    text = re.sub("[ \u3000]+", " ", text.replace("\u200b", ""))
    return re.sub(" (?=[?!,.:])", "", text).strip()


class _Moses:
    """Moses' tokenizer of a language, as sacremoses has it."""

    def __init__(self, language: str):
        try:
            import sacremoses
        except ImportError:
            raise UserError(
                "tokenizer joeynmt: the model's text is cut by Moses' tokenizer: pip install sacremoses"
            ) from None
        self.tokenizer = sacremoses.MosesTokenizer(lang=language)
        self.detokenizer = sacremoses.MosesDetokenizer(lang=language)
        self.normalizer = sacremoses.MosesPunctNormalizer()

    def cut(self, text: str, normalize: bool) -> str:
        text = self.normalizer.normalize(text) if normalize else text
        return str(self.tokenizer.tokenize(text, return_str=True))

    def join(self, text: str) -> str:
        return str(self.detokenizer.detokenize(text.split()))


class JoeyTokenizerFactory(MarianTokenizerFactory):
    """Loads what was imported. There is nothing to train: the vocabulary is the model's."""

    def train(self, texts: Iterable[str], what: str) -> Any:
        raise UserError(
            "tokenizer joeynmt is that of a model that was read: give it as training.finetune_from"
        )

    def load(self, folder: Path, side: str) -> Any:
        file = folder / f"{side}.steps.json"
        try:
            steps = Steps(**read_json(file, "restore it"))
            kind = KINDS[steps.kind]
        except (OSError, TypeError, KeyError) as error:
            raise UserError(f"{folder} has no tokenizer of side {side}: {error}") from None
        if kind is MarianTokenizer:
            return JoeyTokenizer(MarianTokenizer.load(folder, side, *self._how), steps)
        made = kind.load(folder, side)
        assert isinstance(made, Words)
        made.sampling, made.samples = self.config.sampling, self.config.sampling > 0
        return JoeyTokenizer(made, replace(steps))
