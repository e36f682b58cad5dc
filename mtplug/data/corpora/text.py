"""Text corpora: two files of parallel lines, or one of tab-separated pairs; plain, .gz, .xz or .zst."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import mtplug
from mtplug.data.corpora import Corpus, CorpusConfig, existing_file
from mtplug.data.corpora.files import lines
from mtplug.errors import UserError
from mtplug.registry import choice


@dataclass
class TextConfig(CorpusConfig):
    """Two text files, one sentence a line, line by line translations of each other; plain, .gz, .xz or .zst."""

    source: str = ""
    """file in the source language"""
    target: str = ""
    """file in the target language"""
    references: list[str] = field(default_factory=list)
    """for validation and test sets: files of further reference translations, which scores use too"""
    root: str = ""
    """folder that these paths are relative to; empty: data.root"""
    on_error: str = choice("inherit", "error", "skip")
    """what happens to a line that is not valid UTF-8; inherit: as data.on_error"""


class Text(Corpus):
    """Line-parallel files."""

    config: TextConfig

    def files(self) -> list[Path]:
        root, what = self.config.root, "corpus"
        return [
            existing_file(self.config.source, root, f"{what}: source"),
            existing_file(self.config.target, root, f"{what}: target"),
            *(existing_file(name, root, f"{what}: references") for name in self.config.references),
        ]

    @staticmethod
    def check_files(config: TextConfig) -> None:
        """Raises `UserError` if the sides have different numbers of lines; to count takes half as long as a checksum."""
        source, target = Text(config, ("", "")).files()[:2]
        counts = [sum(1 for _ in lines(file)) for file in (source, target)]
        if counts[0] != counts[1]:
            raise _unequal(source, counts[0], target, counts[1])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        source, target = self.files()[:2]
        self.bad_lines = 0
        pairs = zip_longest(lines(source), lines(target))
        for number, (left, right) in enumerate(pairs, start=1):
            if left is None or right is None:
                more = number + sum(1 for _ in pairs)
                counts = (number - 1, more) if left is None else (more, number - 1)
                raise _unequal(source, counts[0], target, counts[1])
            texts = [self._decode(left, source, number), self._decode(right, target, number)]
            if None in texts:
                self.bad_lines += 1
                continue
            yield texts[0], texts[1]  # type: ignore[misc]

    def _decode(self, line: bytes, file: Path, number: int) -> str | None:
        try:
            return line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            if self.config.on_error == "skip":
                return None
            raise UserError(
                f"{file}:{number}: not valid UTF-8 (byte {error.start + 1} of the line); "
                "fix the line, or set data.on_error=skip"
            ) from None


def _unequal(source: Path, lines: int, target: Path, of_target: int) -> UserError:
    return UserError(
        f"{source} has {lines:,} lines, {target} has {of_target:,}: both sides need the same number of lines"
    )


@dataclass
class TsvConfig(CorpusConfig):
    """One file of columns separated by tabs, without quoting; plain, .gz, .xz or .zst."""

    path: str = ""
    """the file"""
    root: str = ""
    """folder that it starts from; empty: data.root"""
    source_column: int = 0
    """column of the source, counted from 0; -1 is the last"""
    target_column: int = 1
    """column of the target"""
    header: bool = False
    """the first line names the columns and is no pair"""
    on_error: str = choice("inherit", "error", "skip")
    """what happens to a line that is not valid UTF-8 or lacks a column"""


class Tsv(Corpus):
    """Tab-separated pairs."""

    config: TsvConfig

    def files(self) -> list[Path]:
        return [existing_file(self.config.path, self.config.root, "corpus")]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        (path,) = self.files()
        self.bad_lines = 0
        columns = (self.config.source_column, self.config.target_column)
        for number, line in enumerate(lines(path), start=1):
            if number == 1 and self.config.header:
                continue
            cells: list[str] = []
            try:
                cells = line.decode("utf-8").rstrip("\r\n").split("\t")
                pair = cells[columns[0]].strip(), cells[columns[1]].strip()
            except (UnicodeDecodeError, IndexError) as error:
                if self.config.on_error == "skip":
                    self.bad_lines += 1
                    continue
                problem = "not valid UTF-8"
                if isinstance(error, IndexError):
                    missing = next(c for c in columns if not -len(cells) <= c < len(cells))
                    problem = f"no column {missing}"
                raise UserError(
                    f"{path}:{number}: {problem}; fix the line, or set data.on_error=skip"
                ) from None
            yield pair


@mtplug.hookimpl
def register_corpora(register):
    register("text", Text, TextConfig)
    register("tsv", Tsv, TsvConfig)
