"""CSV: tables of cells, of which some are quoted (RFC 4180), and that a header names."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtplug
from mtplug.data.corpora.files import kind_of, lines, matching_files
from mtplug.data.corpora.records import Records, RecordsConfig, problem_of, require_columns
from mtplug.errors import UserError


@dataclass
class CsvConfig(RecordsConfig):
    """Tables with a header, of which cells may be quoted, as spreadsheets write them; plain, .gz, .xz or .zst."""

    path: str = ""
    """a file, a folder (searched recursively) or a pattern such as data/*.csv"""
    source: str = "{lang}"
    """column of the source, by its name; {lang} is the task's source language"""
    target: str = "{lang}"
    """column of the target, with {lang} for the task's target language"""
    header: bool = True
    """the first row names the columns; false: their names are 0, 1 and so on"""
    delimiter: str = ""
    """character between cells; empty: a tab in files whose name ends in .tsv, a comma in others"""
    quote: str = '"'
    """character around cells that hold the delimiter, line breaks, or itself, which is written twice; empty: there is none"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("delimiter", "quote"):
            value = getattr(self, name)
            if len(value) > 1 or value in ("\r", "\n"):
                raise ValueError(f'{name} must be one character, not {value!r}; a tab is "\\t"')
        if self.quote and self.quote == self.delimiter:
            raise ValueError(f"quote and delimiter are both {self.quote!r}")


class Csv(Records):
    """Each file has a header of its own. Empty lines are passed over; they end documents."""

    config: CsvConfig

    def files(self) -> list[Path]:
        kinds = (".csv", ".tsv")
        return matching_files(self.config.path, self.config.root, kinds, "corpus csv")

    def records(self) -> Iterator[tuple[str, Any]]:
        for file in self.files():
            self.document += 1
            yield from self._records(file)

    def _records(self, file: Path) -> Iterator[tuple[str, Any]]:
        delimiter = self.config.delimiter or ("\t" if kind_of(file) == ".tsv" else ",")
        names: list[str] = []
        for line, count, row in _rows(file, delimiter, self.config.quote):
            place = f"{file}:{line}"
            if isinstance(row, ValueError):
                if self.config.header and not names:
                    raise UserError(f"{place}: {problem_of(row)}")
                for _ in range(count):
                    yield place, row
            elif not row:
                self.document += 1
            elif not names and self.config.header:
                names = [name.strip() for name in row]
                one = f"; or set delimiter, which is {delimiter!r} here" if len(names) == 1 else ""
                require_columns(self.columns, names, file, one)
            else:
                if not names:
                    names = [str(number) for number in range(len(row))]
                    require_columns(self.columns, names, file)
                problem = f"{len(row)} cells, and there are {len(names)} columns; a cell that holds {delimiter!r} has to be quoted"
                whole = len(row) == len(names)
                record = dict(zip(names, row, strict=True)) if whole else ValueError(problem)
                yield place, record


def _rows(file: Path, delimiter: str, quote: str) -> Iterator[tuple[int, int, Any]]:
    """(line where it begins, or is wrong; lines; cells, or the `ValueError` that says why there are none)"""
    text = _Text(file)
    quoting: dict[str, Any] = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    # Strict, since otherwise a quote that is not closed takes in what follows, and nothing tells it.
    reader = csv.reader(text, delimiter=delimiter, strict=True, **quoting)
    while True:
        line = first = text.number + 1
        row: Any
        try:
            row = next(reader)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            line, row = text.number, error
        except csv.Error as error:
            row = ValueError(f"not valid CSV: {error}")
        yield line, text.number - first + 1, row


class _Text(Iterator[str]):
    """The lines of a file, with the number of the last one that was read; after one that is no text the next can be."""

    def __init__(self, file: Path):
        self.lines, self.number = lines(file), 0

    def __next__(self) -> str:
        line = next(self.lines)
        self.number += 1
        # A lone carriage return, which `csv` takes in quoted cells only, becomes a space in any case.
        return line.decode("utf-8").replace("\r\n", "\n").replace("\r", " ")


@mtplug.hookimpl
def register_corpora(register):
    register("csv", Csv, CsvConfig)
