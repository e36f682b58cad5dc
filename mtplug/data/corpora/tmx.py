"""Translation memories in TMX (LISA OSCAR, TMX 1.4b; also 1.1 to 1.3), read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import mtplug
from mtplug.data.corpora.markup import LANG, MarkupConfig, MarkupCorpus, Unit, matches, plain_text


@dataclass
class TmxConfig(MarkupConfig):
    """Translation memories (.tmx), plain, .gz, .xz or .zst, by the languages of the task; en also takes en-GB."""


class Tmx(MarkupCorpus):
    """A pair for each translation unit that has both languages, in the order of files and units.

    Of several variants in a language the one with the task's very code goes before, else the first.
    """

    config: TmxConfig
    format, suffixes, elements = "tmx", (".tmx",), ("tu",)

    def pairs(self, unit: Unit, seen: set[str]) -> Iterator[tuple[str, str]]:
        variants = _variants(unit)
        source, target = (_chosen(variants, language) for language in self.languages)
        if source is None or target is None:
            seen.update(tag for tag, _ in variants)
            return
        inline = self.config.inline
        yield plain_text(source, inline), plain_text(target, inline)


def _variants(unit: Unit) -> list[tuple[str, Element]]:
    """(language, segment) of each variant.

    Raises:
        ValueError: one lacks its language or segment.
    """
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
