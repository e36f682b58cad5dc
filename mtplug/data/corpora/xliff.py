"""XLIFF 1.2 and 2.x (OASIS), read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

import mtplug
from mtplug.data.corpora.markup import LANG, MarkupConfig, MarkupCorpus, Unit, matches, plain_text


@dataclass
class XliffConfig(MarkupConfig):
    """XLIFF 1.2 and 2.x (.xlf, .xliff, .sdlxliff …), plain, .gz, .xz or .zst; in either direction of the task."""

    states: list[str] = field(default_factory=list)
    """states of a target (1.2) or segment (2.x) that are taken, such as [final, reviewed]; empty: all but those that
    nobody has confirmed: new, initial and needs-…"""


class Xliff(MarkupCorpus):
    """A pair for each segment that has a target, in the order of files and units.

    Where a unit of 1.2 is segmented (`seg-source`, as CAT tools write), its segments are the pairs, matched by `mid`.
    Proposals (`alt-trans`) and what is marked `translate="no"` are left out.
    """

    config: XliffConfig

    format = "xliff"
    suffixes = (".xlf", ".xliff", ".sdlxliff", ".mxliff", ".mqxliff")
    elements = ("trans-unit", "unit")

    def pairs(self, unit: Unit, seen: set[str]) -> Iterator[tuple[str, str]]:
        if {**unit.above, **unit.element.attrib}.get("translate") == "no":
            return
        parts = unit.element.iter("segment") if unit.element.tag == "unit" else [unit.element]
        for part in parts:
            source, target = part.find("source"), part.find("target")
            if source is None:
                raise ValueError(f"a {part.tag} has no source")
            if target is None or not self._taken(part, target):
                continue
            forward = self._forward(unit, source, target, seen)
            if forward is None:
                continue
            for left, right in _segments(part, source, target):
                texts = plain_text(left, self.config.inline), plain_text(right, self.config.inline)
                if all(texts):
                    yield texts if forward else texts[::-1]

    def _taken(self, part: Element, target: Element) -> bool:
        state = target.get("state") or part.get("state") or ""
        if self.config.states:
            return state in self.config.states
        return state not in ("new", "initial") and not state.startswith("needs-")

    def _forward(self, unit: Unit, source: Element, target: Element, seen: set[str]) -> bool | None:
        """Whether the file translates as the task does, or the other way; None: it is about other languages.

        A file need not say the language of its targets: it is then taken to be the task's.
        """
        above = unit.above
        first = source.get(LANG) or above.get("source-language") or above.get("srcLang")
        second = target.get(LANG) or above.get("target-language") or above.get("trgLang")
        if not first:
            raise ValueError("nothing says the language of its source (source-language, srcLang)")
        seen.update(filter(None, (first, second)))
        for forward, (source_lang, target_lang) in (
            (True, self.languages),
            (False, self.languages[::-1]),
        ):
            if matches(first, source_lang) and (not second or matches(second, target_lang)):
                return forward
        return None


def _segments(part: Element, source: Element, target: Element) -> Iterator[tuple[Element, Element]]:
    """The unit as a whole, or its segments."""
    segmented = part.find("seg-source")
    translated = {m.get("mid"): m for m in target.iter("mrk") if m.get("mtype") == "seg"}
    if segmented is None or not translated:
        yield source, target
        return
    for mark in segmented.iter("mrk"):
        if mark.get("mtype") == "seg" and mark.get("mid") in translated:
            yield mark, translated[mark.get("mid")]


@mtplug.hookimpl
def register_corpora(register):
    register("xliff", Xliff, XliffConfig)
