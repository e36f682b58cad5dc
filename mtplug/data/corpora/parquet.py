"""Apache Parquet, the files that Hugging Face's hub keeps data sets in, read by pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtplug
from mtplug.data.corpora import Corpus
from mtplug.data.corpora.files import matching_files
from mtplug.data.corpora.jsonl import JsonlConfig, text_of
from mtplug.errors import UserError

ROWS = 4096
"""in memory at once"""


@dataclass
class ParquetConfig(JsonlConfig):
    """Rows of Parquet files, such as those of a translation set of Hugging Face's hub; columns are named as fields of JSON."""

    path: str = ""
    """a file, a folder (searched recursively) or a pattern such as opus-100/de-en/train-*.parquet"""


class Parquet(Corpus):
    """Pairs in the order of files and rows; line breaks inside of a text become spaces. Each file is a document."""

    config: ParquetConfig

    def files(self) -> list[Path]:
        return matching_files(self.config.path, self.config.root, (".parquet",), "corpus parquet")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise UserError("corpus parquet needs pyarrow: pip install 'mtplug[parquet]'") from None
        self.bad_lines = 0
        columns = [
            name.replace("{lang}", language)
            for name, language in zip(
                (self.config.source, self.config.target), self.languages, strict=True
            )
        ]
        files = self.files()
        for self.document, file in enumerate(files):
            try:
                with parquet.ParquetFile(file) as opened:
                    _require(opened, columns, file)
                    yield from self._pairs(opened, columns, file)
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                said = str(error).splitlines()[0]
                raise UserError(f"{file} cannot be read as Parquet: {said}") from None

    def _pairs(self, opened: Any, columns: list[str], file: Path) -> Iterator[tuple[str, str]]:
        row = 0
        for batch in opened.iter_batches(ROWS, columns=columns, use_threads=False):
            for record in batch.to_pylist():
                row += 1
                try:
                    source, target = (text_of(record, name) for name in columns)
                except ValueError as error:
                    if self.config.on_error == "skip":
                        self.bad_lines += 1
                        continue
                    raise UserError(
                        f"{file}: row {row}: {error}; set data.on_error=skip to leave such rows out"
                    ) from None
                yield source, target


def _require(opened: Any, columns: list[str], file: Path) -> None:
    there = [opened.schema.column(n).path for n in range(len(opened.schema))]
    for name in columns:
        if name not in there:
            raise UserError(f"{file} has no column {name}; its columns: {', '.join(there)[:300]}")


@mtplug.hookimpl
def register_corpora(register):
    register("parquet", Parquet, ParquetConfig)
