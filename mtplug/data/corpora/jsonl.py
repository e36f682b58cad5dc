"""JSON lines: one object a line, as Hugging Face's datasets write translations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mtplug
from mtplug.data.corpora import Corpus, CorpusConfig, one_line
from mtplug.data.corpora.files import lines, matching_files
from mtplug.errors import UserError
from mtplug.registry import choice


@dataclass
class JsonlConfig(CorpusConfig):
    """One JSON object a line, such as {"translation": {"en": "…", "de": "…"}}; plain, .gz, .xz or .zst."""

    path: str = ""
    """a file, a folder (searched recursively) or a pattern such as data/train-*.jsonl.gz"""
    root: str = ""
    """folder that `path` starts from; empty: data.root"""
    source: str = "translation.{lang}"
    """field of the source; dots lead into objects, {lang} is the task's source language"""
    target: str = "translation.{lang}"
    """field of the target, with {lang} for the task's target language"""
    references: list[str] = field(default_factory=list)
    """for validation and test sets: fields of further reference translations, which scores use too"""
    on_error: str = choice("inherit", "error", "skip")
    """what happens to a line that is no JSON object, not UTF-8, or lacks a field; inherit: as data.on_error"""


class Jsonl(Corpus):
    """Pairs in the order of files and lines; line breaks inside of a text become spaces, empty lines are passed over."""

    config: JsonlConfig

    def files(self) -> list[Path]:
        kinds = (".jsonl", ".json", ".ndjson")
        return matching_files(self.config.path, self.config.root, kinds, "corpus jsonl")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self.bad_lines = 0
        fields = [
            name.replace("{lang}", language)
            for name, language in zip(
                (self.config.source, self.config.target), self.languages, strict=True
            )
        ]
        self.document = 0
        for file in self.files():
            self.document += 1
            for number, line in enumerate(lines(file), start=1):
                if line.isspace():
                    self.document += 1
                    continue
                try:
                    record = json.loads(line.decode("utf-8"))
                    source, target = (text_of(record, name) for name in fields)
                except (ValueError, RecursionError) as error:
                    if self.config.on_error == "skip":
                        self.bad_lines += 1
                        continue
                    raise UserError(
                        f"{file}:{number}: {problem_of(error)}; fix the line, or set data.on_error=skip"
                    ) from None
                yield source, target


def text_of(record: Any, field: str) -> str:
    """The text of a field; a name with dots is looked up whole first, then step by step.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    value = record.get(field)
    if value is None:
        value = record
        for name in field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"no text in field {field}; fields: {', '.join(map(str, record))[:200]}")
    value.encode("utf-8")  # JSON can write half of a surrogate pair, which is no text
    return one_line(value)


def problem_of(error: Exception) -> str:
    """What is wrong with JSON, or with its text, in our words."""
    if isinstance(error, UnicodeDecodeError):
        return f"not valid UTF-8 (byte {error.start + 1} of the line)"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair (\\ud800 to \\udfff) is no character"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} (character {error.pos + 1})"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


@mtplug.hookimpl
def register_corpora(register):
    register("jsonl", Jsonl, JsonlConfig)
