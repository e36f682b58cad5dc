"""Translation memories in TMX (LISA OSCAR, TMX 1.4b; also 1.1 to 1.3), read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import mtplug
from mtplug.data.corpora import Corpus
from mtplug.data.corpora.files import matching_files
from mtplug.data.corpora.markup import (
    LANG,
    MarkupConfig,
    Unit,
    matches,
    nothing_found,
    plain_text,
    units,
    unreadable,
)


@dataclass
class TmxConfig(MarkupConfig):
    """Translation memories (.tmx), plain, .gz, .xz or .zst, by the languages of the task; en also takes en-GB."""


class Tmx(Corpus):
    """A pair for each translation unit that has both languages, in the order of files and units.

    Of several variants in a language the one with the task's very code goes before, else the first.
    """

    config: TmxConfig

    def files(self) -> list[Path]:
        return matching_files(self.config.path, self.config.root, (".tmx",), "corpus tmx")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self.bad_lines = 0
        lenient = self.config.on_error == "skip"
        seen: set[str] = set()
        empty = True
        files = self.files()
        for file in files:
            for unit in units(file, ("tu",), lenient):
                try:
                    variants = _variants(unit)
                except ValueError as error:
                    if not lenient:
                        raise unreadable(file, unit, str(error)) from None
                    self.bad_lines += 1
                    continue
                sides = [_chosen(variants, language) for language in self.languages]
                if sides[0] is None or sides[1] is None:
                    seen.update(tag for tag, _ in variants)
                    continue
                empty = False
                yield (
                    plain_text(sides[0], self.config.inline),
                    plain_text(sides[1], self.config.inline),
                )
        if empty and not self.bad_lines:
            raise nothing_found(files, self.languages, seen)


def _variants(unit: Unit) -> list[tuple[str, Element]]:
    """(language, segment) of each variant.

    Raises:
        ValueError: one lacks its language or segment.
    """
    if unit.problem:
        raise ValueError(unit.problem)
    found = []
    for variant in unit.element.iter("tuv"):
        language = variant.get(LANG) or variant.get("lang")  # `lang` before TMX 1.4
        segment = variant.find("seg")
        if not language:
            raise ValueError("a tuv has no xml:lang")
        if segment is None:
            raise ValueError(f"the tuv of {language} has no seg")
        found.append((language, segment))
    return found


def _chosen(variants: list[tuple[str, Element]], language: str) -> Element | None:
    fitting = [(tag, segment) for tag, segment in variants if matches(tag, language)]
    exact = [segment for tag, segment in fitting if tag.lower() == language.lower()]
    return next(iter(exact or [segment for _, segment in fitting]), None)


@mtplug.hookimpl
def register_corpora(register):
    register("tmx", Tmx, TmxConfig)
