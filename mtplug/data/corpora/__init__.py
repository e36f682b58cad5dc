"""Readers of raw parallel corpora: the kind `corpora`."""

import glob
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mtplug.errors import UserError, did_you_mean
from mtplug.registry import require_range


@dataclass
class CorpusConfig:
    """What every corpus takes."""

    weight: float = 1.0
    """how often a sentence is seen in an epoch, on average"""
    source_lang: str = ""
    """code of this corpus's source language; empty: the task's"""
    target_lang: str = ""
    """code of this corpus's target language; empty: the task's"""
    prefix: str = ""
    """put in front of each source text, such as <bt> for back-translated text (Caswell et al. 2019);
    the tokenizers `sentencepiece` and `words` keep it as one piece"""
    documents: bool = True
    """of task documents: sentences of a file that follow each other belong together, up to an empty line; false: each
    stands by itself"""

    def __post_init__(self) -> None:
        require_range(self, 0, math.inf, "weight")


class Corpus(ABC):
    """Sentence pairs, in a fixed order.

    Args:
        config: the settings registered with the reader.
        languages: codes of the source and target language.
    """

    def __init__(self, config, languages: tuple[str, str]):
        self.config = config
        self.languages = languages

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that are read, for checksums.

        Raises:
            UserError: one is missing.
        """

    def __str__(self) -> str:
        """Its files, for messages."""
        return " and ".join(map(str, self.files()))

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(source, target), each one line without its end."""

    bad_lines = 0
    """Lines that the last iteration skipped because they could not be read."""
    document = 0
    """Number of the document that the pair which was given last is of, where the format tells: of several files each is
    one."""


class View(Corpus):
    """A corpus as something else sees it."""

    def __init__(self, corpus: Corpus):
        super().__init__(corpus.config, corpus.languages)
        self.corpus = corpus

    @property
    def bad_lines(self) -> int:  # type: ignore[override]
        return self.corpus.bad_lines

    @property
    def document(self) -> int:  # type: ignore[override]
        return self.corpus.document

    def files(self) -> list[Path]:
        return self.corpus.files()


def has_text(pair: tuple[str, str]) -> bool:
    """Whether a pair has text on one side at least; one that has none is the end of a document, or nothing."""
    return any(map(str.strip, pair))


def one_line(text: str) -> str:
    """A text of a format that can break lines, on one line: breaks, with the blanks around them, become a space."""
    if "\n" not in text and "\r" not in text:
        return text.strip()
    parts = (part.strip() for part in text.replace("\r", "\n").split("\n"))
    return " ".join(part for part in parts if part)


def whole_characters(text: str) -> str:
    r"""A text without lone surrogates such as "\ud800", which Python and JSON allow and UTF-8 does not: replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def existing_file(path: str, root: str, what: str) -> Path:
    """`path` below `root`, checked.

    Raises:
        UserError: no path is given, nothing is there, or it is empty.
    """
    if not path:
        raise UserError(f"{what}: no file is given")
    found = Path(root) / path
    if found.is_dir():
        raise UserError(f"{what}: {found} is a folder; give a file")
    if not found.is_file():
        if found.exists():
            raise UserError(
                f"{what}: {found} can be read once only, and a corpus is read again; give a file"
            )
        there = [Path(name).name for name in glob.glob(f"{glob.escape(str(found.parent))}/*")]
        hint = did_you_mean(found.name, there).replace("known:", "that folder holds")
        raise UserError(f"{what}: {found} is no file{hint}")
    if found.stat().st_size == 0:
        raise UserError(f"{what}: {found} is empty")
    return found
