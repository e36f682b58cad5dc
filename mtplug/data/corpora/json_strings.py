"""Interface strings in JSON: one file for each language, the same keys in all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtplug
from mtplug.data.corpora import Corpus, CorpusConfig, one_line
from mtplug.data.corpora.files import fitting, opened
from mtplug.data.corpora.records import problem_of
from mtplug.errors import UserError


@dataclass
class JsonStringsConfig(CorpusConfig):
    """Strings that stand under the same key in the files of two languages, plain, .gz, .xz or .zst."""

    path: str = ""
    """where the files are, with {lang} for the language, such as i18n/*/{lang}.json"""
    root: str = ""
    """folder that `path` starts from; empty: data.root"""


class JsonStrings(Corpus):
    """Pairs in the order of files and keys; a key that one side lacks is left out."""

    config: JsonStringsConfig

    def _sides(self) -> list[tuple[Path, Path]]:
        if "{lang}" not in self.config.path:
            raise UserError("corpus json_strings: path needs {lang} in the place of the language")
        pattern = str(Path(self.config.root) / self.config.path)
        source, target = self.languages
        before, after = self.config.path.split("{lang}", 1)
        sides = []
        for found in sorted(fitting(f"{before}{source}{after}", self.config.root)):
            # The language stands in the last place that lets both names fit the pattern.
            head, _, tail = found.rpartition(f"{source}{Path(after).name}")
            other = Path(f"{head}{target}{Path(after).name}{tail}")
            if other.is_file():
                sides.append((Path(found), other))
        if not sides:
            raise UserError(
                f"corpus json_strings: {pattern}: no file is there in both {source} and {target}"
            )
        return sides

    def files(self) -> list[Path]:
        return [file for side in self._sides() for file in side]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for number, (source, target) in enumerate(self._sides()):
            self.document = number
            left, right = (_strings_of(file) for file in (source, target))
            for key, text in left.items():
                pair = one_line(text), one_line(right.get(key, ""))
                if all(pair):
                    yield pair


def _strings_of(file: Path) -> dict[tuple[str, ...], str]:
    with opened(file) as stream:
        content = stream.read()
    try:
        return dict(_strings(json.loads(content)))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{file}:{line}: not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: no valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: no valid JSON: {problem_of(error)}") from None


def _strings(value: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, str):
        value.encode("utf-8")  # JSON can write half of a surrogate pair, which is no text
        yield key, value
    elif isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in items:
            yield from _strings(inner, (*key, str(name)))


@mtplug.hookimpl
def register_corpora(register):
    register("json_strings", JsonStrings, JsonStringsConfig)
