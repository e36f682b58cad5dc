"""JSON lines: one object a line, as Hugging Face's datasets write translations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtplug
from mtplug.data.corpora.files import lines, matching_files
from mtplug.data.corpora.records import Records, RecordsConfig, problem_of


@dataclass
class JsonlConfig(RecordsConfig):
    """One JSON object a line, such as {"translation": {"en": "…", "de": "…"}}; plain, .gz, .xz or .zst."""

    path: str = ""
    """a file, a folder (searched recursively) or a pattern such as data/train-*.jsonl.gz"""


class Jsonl(Records):
    """Empty lines are passed over; they end documents."""

    config: JsonlConfig

    def files(self) -> list[Path]:
        kinds = (".jsonl", ".json", ".ndjson")
        return matching_files(self.config.path, self.config.root, kinds, "corpus jsonl")

    def records(self) -> Iterator[tuple[str, Any]]:
        for file in self.files():
            self.document += 1
            for number, line in enumerate(lines(file), start=1):
                if line.isspace():
                    self.document += 1
                    continue
                try:
                    record = json.loads(line.decode("utf-8"))
                except ValueError as error:
                    record = error
                except RecursionError as error:
                    record = ValueError(problem_of(error))
                yield f"{file}:{number}", record


@mtplug.hookimpl
def register_corpora(register):
    register("jsonl", Jsonl, JsonlConfig)
