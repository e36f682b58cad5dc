"""gettext catalogues, compiled (.mo) or not (.po), plain or packed, read by polib."""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtplug
from mtplug.data.corpora import Corpus, CorpusConfig, one_line
from mtplug.data.corpora.files import PACKED, is_text_encoding, kind_of, matching_files, opened
from mtplug.data.corpora.markup import matches, nothing_found
from mtplug.errors import UserError


@dataclass
class GettextConfig(CorpusConfig):
    """Messages and their translations in gettext catalogues (.po, .mo)."""

    path: str = ""
    """a file, a folder (searched to its bottom) or a pattern such as locale/de/**/*.po"""
    root: str = ""
    """folder that `path` starts from; empty: data.root"""
    message_lang: str = "en"
    """language of the msgid; it must be the task's source or target language"""
    fuzzy: bool = False
    """also take translations marked as fuzzy, which nobody has confirmed"""


class Gettext(Corpus):
    """All translated messages in the order of the files' names; line breaks become spaces.

    A catalogue whose header names another language than the task's is passed over.

    Of a message with plural forms the first and the last form are taken, with the singular and the
    plural.
    """

    config: GettextConfig

    def files(self) -> list[Path]:
        return matching_files(self.config.path, self.config.root, (".po", ".mo"), "corpus gettext")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        try:
            import polib
        except ImportError:
            raise UserError("corpus gettext needs polib: pip install polib") from None
        message_lang = self.config.message_lang
        sides = [matches(message_lang, language) for language in self.languages]
        if not any(sides):
            raise UserError(
                f"corpus gettext: message_lang {message_lang} is neither the task's source_lang "
                f"nor its target_lang ({', '.join(self.languages)})"
            )
        forward = sides[0] and message_lang != self.languages[1]
        translated = self.languages[forward]
        files, strange, passed = self.files(), set(), 0
        for self.document, file in enumerate(files):
            with opened(file) as stream:
                content = stream.read()
            catalogue = _parsed(polib, content, file)
            language = catalogue.metadata.get("Language", "").strip()
            if language and not matches(language, translated):
                strange.add(language)
                passed += 1
                continue
            for entry in catalogue:
                for message, translation in self._pairs(entry):
                    texts = one_line(message), one_line(translation)
                    if all(texts):
                        yield texts if forward else texts[::-1]
        if passed == len(files):
            raise nothing_found(files, self.languages, strange)

    def _pairs(self, entry: Any) -> Iterator[tuple[str, str]]:
        # entries of a .mo have no flags: compiling leaves out what is fuzzy or obsolete
        if getattr(entry, "obsolete", False) or (
            getattr(entry, "fuzzy", False) and not self.config.fuzzy
        ):
            return
        if not entry.msgid_plural:
            yield entry.msgid, entry.msgstr
            return
        forms = [entry.msgstr_plural[k] for k in sorted(entry.msgstr_plural)]
        if forms:
            yield entry.msgid, forms[0]
            yield entry.msgid_plural, forms[-1]


_STRING = re.compile(r'^[^"]*"(?:[^"\\]|\\.)*"$')


def _parsed(polib: Any, content: bytes, file: Path) -> Any:
    try:
        compiled = kind_of(file) == ".mo"
        if compiled:
            _check_whole(content)
        encoding = polib.detect_encoding(content, binary_mode=compiled)
        if not is_text_encoding(encoding):
            raise ValueError(f"its charset {encoding} is no encoding of text")
        if compiled:
            return polib.mofile(content)
        lines = content.decode(encoding).rstrip().split("\n")  # for an error that names the line
        last = lines[-1].strip()
        if last.startswith(("msg", '"')) and not _STRING.search(last):
            raise UserError(f"{file}:{len(lines)}: no readable gettext catalogue: it is cut off")
        if file.suffix not in PACKED:
            return polib.pofile(str(file))
        # polib breaks the lines of a text at all of Unicode's separators, those of a file at line feeds.
        with tempfile.NamedTemporaryFile(suffix=".po") as unpacked:
            unpacked.write(content)
            unpacked.flush()
            return polib.pofile(unpacked.name)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{file}:{line}: not valid {error.encoding}") from None
    except (OSError, ValueError, struct.error) as error:
        text = str(error)
        line_of = re.search(r"\(line (\d+)\)", text)
        where = f"{file}:{line_of[1]}" if line_of else str(file)
        problem = "syntax error" if line_of else text
        raise UserError(f"{where}: no readable gettext catalogue: {problem}") from None


def _check_whole(compiled: bytes) -> None:
    """Raises `ValueError` or `struct.error` where texts of a .mo lie beyond its end: polib takes what is there.

    The file begins with a number that tells the order of bytes, its version, the number of texts, and where the two
    tables of (length, place) begin, of messages and of translations (GNU gettext's manual, "MO Files").
    """
    order = "<" if compiled.startswith(b"\xde\x12\x04\x95") else ">"
    count, *tables = struct.unpack_from(f"{order}3I", compiled, 8)
    for table in tables:
        found = struct.unpack_from(f"{order}{2 * count}I", compiled, table)
        if any(
            length + place > len(compiled)
            for length, place in zip(found[::2], found[1::2], strict=True)
        ):
            raise ValueError("it is cut off")


@mtplug.hookimpl
def register_corpora(register):
    register("gettext", Gettext, GettextConfig)
