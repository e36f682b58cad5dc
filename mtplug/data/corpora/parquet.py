"""Apache Parquet, the files that Hugging Face's hub keeps data sets in, read by pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtplug
from mtplug.data.corpora.files import matching_files
from mtplug.data.corpora.records import Records, RecordsConfig, require_columns
from mtplug.errors import UserError

ROWS = 4096
"""in memory at once"""


@dataclass
class ParquetConfig(RecordsConfig):
    """Rows of Parquet files, such as those of a translation set of Hugging Face's hub; columns are named as fields of JSON."""

    path: str = ""
    """a file, a folder (searched recursively) or a pattern such as opus-100/de-en/train-*.parquet"""


class Parquet(Records):
    """Each file is a document."""

    config: ParquetConfig
    advice = "set data.on_error=skip to leave such rows out"

    def files(self) -> list[Path]:
        return matching_files(self.config.path, self.config.root, (".parquet",), "corpus parquet")

    def records(self) -> Iterator[tuple[str, Any]]:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise UserError("corpus parquet needs pyarrow: pip install 'mtplug[parquet]'") from None
        files = self.files()
        for self.document, file in enumerate(files):
            try:
                with parquet.ParquetFile(file) as opened:
                    there = [opened.schema.column(n).path for n in range(len(opened.schema))]
                    require_columns(self.columns, there, file)
                    yield from self._rows(opened, file)
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                said = str(error).splitlines()[0]
                raise UserError(f"{file} cannot be read as Parquet: {said}") from None

    def _rows(self, opened: Any, file: Path) -> Iterator[tuple[str, Any]]:
        row = 0
        for batch in opened.iter_batches(ROWS, columns=self.columns, use_threads=False):
            for record in batch.to_pylist():
                row += 1
                yield f"{file}: row {row}", record


@mtplug.hookimpl
def register_corpora(register):
    register("parquet", Parquet, ParquetConfig)
