"""What translation memories in XML have in common: units read one after the other, languages, inline tags.

The parser is expat itself, which knows the line of each unit, and of the document only the unit that is being
read is in memory. Entities that a document declares are refused (they can be made to grow without bound), and
nothing outside of the file is ever loaded.
"""

from __future__ import annotations

import codecs
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from mtplug.data.corpora import Corpus, CorpusConfig, one_line
from mtplug.data.corpora.files import BLOCK, is_text_encoding, matching_files, opened
from mtplug.errors import UserError
from mtplug.registry import choice

LANG = "xml:lang"
_XML = "http://www.w3.org/XML/1998/namespace "


@dataclass
class MarkupConfig(CorpusConfig):
    """What readers of XML share."""

    path: str = ""
    """a file, a folder (searched to its bottom) or a pattern"""
    root: str = ""
    """folder that `path` starts from; empty: data.root"""
    inline: str = choice("drop", "keep")
    """codes of the original format inside of a text (bpt, ph, x …): leave them out, or keep them as the file writes
    them; the text between paired tags always stays"""
    on_error: str = choice("inherit", "error", "skip")
    """what happens to a unit that is not valid UTF-8 or lacks what it must have; inherit: as data.on_error. A
    document that is not well-formed is always an error"""


class Unit(NamedTuple):
    """One element of a document."""

    element: Element
    line: int
    above: dict[str, str]
    """attributes of the elements around it, of inner ones before those of outer ones"""
    problem: str
    """what is wrong with its text; empty: nothing"""


class MarkupCorpus(Corpus):
    """The pairs of all units, in the order of files and units.

    Attributes:
        format: the name that users know it by.
        suffixes: of file names.
        elements: tags of the units.
    """

    config: MarkupConfig
    format: str
    suffixes: tuple[str, ...]
    elements: tuple[str, ...]

    @abstractmethod
    def pairs(self, unit: Unit, seen: set[str]) -> Iterator[tuple[str, str]]:
        """The pairs of a unit in the task's languages.

        Args:
            unit: without a `problem`.
            seen: languages of units that have no such pair are added.

        Raises:
            ValueError: it lacks what it must have.
        """

    def check(self, files: list[Path]) -> None:
        """Called when all units have been read.

        Raises:
            UserError: a setting fits nothing that was read.
        """

    def files(self) -> list[Path]:
        c = self.config
        return matching_files(c.path, c.root, self.suffixes, f"corpus {self.format}")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self.bad_lines = 0
        lenient = self.config.on_error == "skip"
        seen: set[str] = set()
        empty = True
        files = self.files()
        for self.document, file in enumerate(files):
            for unit in units(file, self.elements, lenient):
                try:
                    if unit.problem:
                        raise ValueError(unit.problem)
                    pairs = list(self.pairs(unit, seen))
                except ValueError as error:
                    if not lenient:
                        raise unreadable(file, unit, str(error)) from None
                    self.bad_lines += 1
                    continue
                empty = empty and not pairs
                yield from pairs
        self.check(files)
        if empty and not self.bad_lines:
            raise nothing_found(files, self.languages, seen)


def units(file: Path, tags: tuple[str, ...], lenient: bool) -> Iterator[Unit]:
    """The elements with one of these tags, in order. Tags are those of the root's namespace, without it.

    Args:
        lenient: bytes and characters that XML doesn't allow make a unit with a `problem`, not an error.

    Raises:
        UserError: with file and line: the document is not well-formed, not in its encoding, declares entities, or its
            archive is damaged.
    """
    reader = _Reader(file, tags)
    for text in _texts(file, lenient):
        reader.feed(text)
        yield from reader.take()
    reader.feed("", last=True)
    yield from reader.take()


class _Reader:
    def __init__(self, file: Path, tags: tuple[str, ...]):
        self.file, self.tags = file, tags
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._data
        self.parser.SkippedEntityHandler = self._skipped
        self.parser.EntityDeclHandler = self._declared
        self.namespace: str | None = None
        self.above: list[dict[str, str]] = []
        self.builder: TreeBuilder | None = None
        self.depth = self.line = 0
        self.problem = ""
        self.done: list[Unit] = []

    def feed(self, text: str, last: bool = False) -> None:
        try:
            self.parser.Parse(text, last)
        except expat.ExpatError as error:
            raise UserError(
                f"{self.file}:{error.lineno}: not well-formed XML: {expat.ErrorString(error.code)} "
                f"(column {error.offset + 1})"
            ) from None

    def take(self) -> list[Unit]:
        done, self.done = self.done, []
        return done

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        namespace, _, local = name.rpartition(" ")
        if self.namespace is None:
            self.namespace = namespace
        tag = local if namespace == self.namespace else name
        attributes = {
            (f"xml:{k.removeprefix(_XML)}" if k.startswith(_XML) else k): v
            for k, v in attributes.items()
        }
        if self.builder is None:
            if tag not in self.tags:
                self.above.append({**(self.above[-1] if self.above else {}), **attributes})
                return
            self.builder, self.depth, self.problem = TreeBuilder(), 0, ""
            self.line = self.parser.CurrentLineNumber
        self.depth += 1
        if self.depth > 100:
            raise UserError(
                f"{self.file}:{self.parser.CurrentLineNumber}: elements more than 100 deep"
            )
        self.builder.start(tag, attributes)

    def _end(self, name: str) -> None:
        if self.builder is None:
            self.above.pop()
            return
        element = self.builder.end(name.rpartition(" ")[2])
        self.depth -= 1
        if not self.depth:
            above = self.above[-1] if self.above else {}
            self.done.append(Unit(element, self.line, above, self.problem))
            self.builder = None

    def _data(self, text: str) -> None:
        if self.builder is not None:
            self.builder.data(text)
            if _REPLACED in text:
                self.problem = "characters that XML does not allow, or not valid UTF-8"

    def _skipped(self, name: str, is_parameter_entity: bool) -> None:
        self.problem = f"unknown entity &{name};"

    def _declared(self, name: str, *rest: object) -> None:
        raise UserError(
            f"{self.file}:{self.parser.CurrentLineNumber}: the document declares the entity '{name}', "
            "which is not read; replace entities by what they stand for"
        )


# --- bytes to text ----------------------------------------------------------------------------

# A noncharacter that XML does allow: what a lenient reader puts for what it does not.
_REPLACED = "\ufdd0"
_NOT_ALLOWED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_REFERENCE = re.compile("&#(?:x([0-9a-fA-F]{1,8})|([0-9]{1,10}));")
_LONGEST_REFERENCE = 13


def _texts(file: Path, lenient: bool) -> Iterator[str]:
    """A document's text, a block at a time."""
    if lenient:
        codecs.register_error("mtplug-replaced", lambda error: (_REPLACED, error.end))  # type: ignore[attr-defined]
    with opened(file) as stream:
        block = stream.read(BLOCK)
        encoding = _encoding(block, file)
        decoder = codecs.getincrementaldecoder(encoding)("mtplug-replaced" if lenient else "strict")
        line, held = 1, ""
        while True:
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                name = "UTF-8" if encoding == "utf-8-sig" else encoding
                raise UserError(
                    f"{file}:{line}: not valid {name}; fix the file, or set data.on_error=skip"
                ) from None
            except UnicodeError as error:  # UTF-16 without its mark
                raise UserError(f"{file}:1: not valid {encoding}: {error}") from None
            line += text.count("\n")
            if lenient:
                text = held + text
                cut = text.rfind("&", max(len(text) - _LONGEST_REFERENCE, 0)) if block else -1
                text, held = (text, "") if cut < 0 else (text[:cut], text[cut:])
                text = _REFERENCE.sub(_reference, _NOT_ALLOWED.sub(_REPLACED, text))
            if text:
                yield text
            if not block:
                return
            block = stream.read(BLOCK)


def _reference(match: re.Match[str]) -> str:
    code = int(match[1], 16) if match[1] else int(match[2])
    allowed = code in (9, 10, 13) or 0x20 <= code < 0xD800 or 0xE000 <= code <= 0x10FFFF
    return match[0] if allowed and code not in (0xFFFE, 0xFFFF) else _REPLACED


def _encoding(start: bytes, file: Path) -> str:
    """Of a document: by its byte order mark, or as its first line declares (XML 1.0, appendix F)."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for encoding in ("utf-16-le", "utf-16-be"):
        if start.startswith("<".encode(encoding)):
            return encoding
    declared = re.match(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)", start)
    name = declared[1].decode() if declared else "utf-8"
    if not is_text_encoding(name):
        raise UserError(f"{file}:1: unknown encoding {name}")
    name = codecs.lookup(name).name
    return "utf-8-sig" if name == "utf-8" else name


# --- what units hold --------------------------------------------------------------------------


def matches(tag: str, language: str) -> bool:
    """Whether text in `tag` serves for `language`: equal, or one is the other and more (de, de-DE; RFC 4647, 3.3.1)."""
    a, b = (code.replace("_", "-").lower() for code in (tag, language))
    return a == b or a.startswith(b + "-") or b.startswith(a + "-")


# Elements that stand for codes of the original format, in TMX 1.4, XLIFF 1.2 and XLIFF 2; `sub` is text that belongs to a
# code, such as a tooltip, and no part of the sentence. All other elements (g, pc, hi, mrk …) surround text.
_CODES = frozenset(
    ["bpt", "ept", "it", "ph", "ut", "x", "bx", "ex", "sc", "ec", "cp", "sm", "em", "sub"]
)


def plain_text(element: Element, inline: str, data: Mapping[str | None, str] | None = None) -> str:
    """An element's text on one line, codes dropped or kept; a code that is a line break is a space.

    Args:
        data: what `dataRef` of XLIFF 2 refers to, by id.
    """
    return one_line("".join(_pieces(element, inline, data or {})))


def _pieces(element: Element, inline: str, data: Mapping[str | None, str]) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        if child.tag not in _CODES:
            paired = inline == "keep" and child.tag == "pc"
            yield _written(child, data, "Start") if paired else ""
            yield from _pieces(child, inline, data)
            yield _written(child, data, "End") if paired else ""
        elif inline == "keep":
            yield "".join(child.itertext()) or _written(child, data)
        elif {child.get("type"), child.get("ctype"), child.get("subType")} & {"lb", "xlf:lb"}:
            yield " "
        yield child.tail or ""


def _written(code: Element, data: Mapping[str | None, str], end: str = "") -> str:
    """What attributes say of a code: the original document's, else what stands for it; `end` is that of a `pc`."""
    written = data.get(code.get(f"dataRef{end}"))
    names = (f"equiv{end}", f"disp{end}") if end else ("equiv-text", "equiv", "disp")
    return written or next(filter(None, map(code.get, names)), "")


def unreadable(file: Path, unit: Unit, problem: str) -> UserError:
    """The error for a unit, where `on_error` does not skip it."""
    return UserError(f"{file}:{unit.line}: {problem}; mend the unit, or set data.on_error=skip")


def named(files: list[Path]) -> str:
    """The first of the files, for a message."""
    return ", ".join(map(str, files[:3])) + (", …" if len(files) > 3 else "")


def nothing_found(files: list[Path], languages: tuple[str, str], seen: set[str]) -> UserError:
    """The error for files without a pair in the task's languages."""
    return UserError(
        f"{named(files)}: no pair of {languages[0]} and {languages[1]}; languages there: {', '.join(sorted(seen)) or 'none'}"
    )
