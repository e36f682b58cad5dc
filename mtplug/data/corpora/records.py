"""What readers of records have in common: fields with names, in JSON lines, Parquet and CSV."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mtplug.data.corpora import Corpus, CorpusConfig, one_line
from mtplug.data.corpora.markup import matches, nothing_found
from mtplug.errors import UserError
from mtplug.registry import choice


@dataclass
class RecordsConfig(CorpusConfig):
    """What readers of records share."""

    path: str = ""
    """a file, a folder (searched recursively) or a pattern"""
    root: str = ""
    """folder that `path` starts from; empty: data.root"""
    source: str = "translation.{lang}"
    """field of the source; dots lead into objects, {lang} is the task's source language"""
    target: str = "translation.{lang}"
    """field of the target, with {lang} for the task's target language"""
    source_lang_field: str = ""
    """field that says which language a source is in, of files with several: records in others than the corpus's are
    left out; empty: all are taken"""
    target_lang_field: str = ""
    """the same of the target"""
    references: list[str] = field(default_factory=list)
    """for validation and test sets: fields of further reference translations, which scores use too"""
    on_error: str = choice("inherit", "error", "skip")
    """what happens to a record that cannot be read, is not UTF-8, or lacks a field; inherit: as data.on_error"""


class Records(Corpus):
    """Pairs in the order of files and records; line breaks inside of a text become spaces.

    Attributes:
        fields: of source and target.
        advice: how to go on after an error.
    """

    config: RecordsConfig
    advice = "fix the line, or set data.on_error=skip"

    def __init__(self, config: RecordsConfig, languages: tuple[str, str]):
        super().__init__(config, languages)
        self.fields = [
            name.replace("{lang}", language)
            for name, language in zip((config.source, config.target), languages, strict=True)
        ]
        said = (config.source_lang_field, config.target_lang_field)
        self._said = [both for both in zip(said, languages, strict=True) if both[0]]

    @property
    def columns(self) -> list[str]:
        """All fields that are read."""
        return list(dict.fromkeys([*self.fields, *(name for name, _ in self._said)]))

    @abstractmethod
    def records(self) -> Iterator[tuple[str, Any]]:
        """(where it is, for messages; a record, or a `ValueError` that says why it cannot be read)."""

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self.bad_lines = self.document = 0
        seen: set[str] = set()
        empty = True
        for place, record in self.records():
            try:
                if isinstance(record, ValueError):
                    raise record
                if not self._fits(record, seen):
                    continue
                source, target = (text_of(record, name) for name in self.fields)
            except ValueError as error:
                if self.config.on_error == "skip":
                    self.bad_lines += 1
                    continue
                raise UserError(f"{place}: {problem_of(error)}; {self.advice}") from None
            empty = False
            yield source, target
        if self._said and empty and not self.bad_lines:
            raise nothing_found(self.files(), self.languages, seen)

    def _fits(self, record: Any, seen: set[str]) -> bool:
        """Whether a record is in the corpus's languages; those of one that is not are added to `seen`."""
        there = [(text_of(record, name), language) for name, language in self._said]
        if all(matches(own, language) for own, language in there):
            return True
        seen.update(own for own, _ in there)
        return False


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
        there = f", but {value!r}" if isinstance(value, (int, float)) else ""  # such as a label
        names = ", ".join(map(str, record))[:200]
        raise ValueError(f"no text in field {field}{there}; fields: {names}")
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


def require_columns(wanted: list[str], there: list[str], file: Any, hint: str = "") -> None:
    """Raises `UserError` for a column that a file does not have."""
    for name in wanted:
        if name not in there:
            raise UserError(
                f"{file} has no column {name}; its columns: {', '.join(there)[:300]}{hint}"
            )
