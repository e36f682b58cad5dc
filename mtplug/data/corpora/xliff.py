"""XLIFF 1.2 and 2.x (OASIS), read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

import mtplug
from mtplug.data.corpora.markup import (
    LANG,
    MarkupConfig,
    MarkupCorpus,
    Unit,
    matches,
    named,
    plain_text,
)
from mtplug.errors import UserError

# Of a target (1.2, section 2.3) or a segment (2.1, section 4.2.3.6); a tool may have others.
_STATES = frozenset(
    ["final", "needs-adaptation", "needs-l10n", "needs-review-adaptation", "needs-review-l10n",
     "needs-review-translation", "needs-translation", "new", "signed-off", "translated", "initial", "reviewed"]
)  # fmt: skip


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

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self.states: set[str] = set()
        self.taken = False
        yield from super().__iter__()

    def check(self, files: list[Path]) -> None:
        given, here = self.config.states, ", ".join(s or "none" for s in sorted(self.states))
        for state in given:
            if state not in _STATES | self.states:
                raise UserError(f"{named(files)}: states: no target has '{state}'; there: {here}")
        if self.states and not self.taken:
            wanted = ", ".join(given) or "any but new, initial and needs-…"
            raise UserError(
                f"{named(files)}: states: no target has one that is taken ({wanted}); there: {here}"
            )

    def pairs(self, unit: Unit, seen: set[str]) -> Iterator[tuple[str, str]]:
        if {**unit.above, **unit.element.attrib}.get("translate") == "no":
            return
        data = {d.get("id"): "".join(d.itertext()) for d in unit.element.iter("data")}
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
                texts = [plain_text(side, self.config.inline, data) for side in (left, right)]
                if all(texts):
                    yield (texts[0], texts[1]) if forward else (texts[1], texts[0])

    def _taken(self, part: Element, target: Element) -> bool:
        state = target.get("state") or part.get("state") or ""
        self.states.add(state)
        if self.config.states:
            taken = state in self.config.states
        else:
            taken = state not in ("new", "initial") and not state.startswith("needs-")
        self.taken = self.taken or taken
        return taken

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
