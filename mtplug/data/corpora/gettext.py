"""gettext catalogues, compiled (.mo) or not (.po), read by polib."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtplug
from mtplug.data.corpora import Corpus, CorpusConfig
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

    Of a message with plural forms the first and the last form are taken, with the singular and the
    plural.
    """

    config: GettextConfig

    def files(self) -> list[Path]:
        if not self.config.path:
            raise UserError("corpus gettext: no path is given")
        pattern = Path(self.config.root) / self.config.path
        if pattern.is_file():
            return [pattern]
        searched = str(pattern / "**" / "*") if pattern.is_dir() else str(pattern)
        found = [Path(p) for p in sorted(glob.glob(searched, recursive=True))]
        found = [p for p in found if p.suffix in (".po", ".mo")]
        if not found:
            raise UserError(f"corpus gettext: {pattern}: no .po or .mo file is there")
        return found

    def __iter__(self) -> Iterator[tuple[str, str]]:
        try:
            import polib
        except ImportError:
            raise UserError("corpus gettext needs polib: pip install polib") from None
        message_lang = self.config.message_lang
        if message_lang not in self.languages:
            raise UserError(
                f"corpus gettext: message_lang {message_lang} is neither the task's source_lang "
                f"nor its target_lang ({', '.join(self.languages)})"
            )
        forward = message_lang == self.languages[0]
        for file in self.files():
            read = polib.mofile if file.suffix == ".mo" else polib.pofile
            try:
                entries = read(str(file))
            except (OSError, ValueError) as error:
                raise UserError(f"{file}: no readable gettext catalogue: {error}") from None
            for entry in entries:
                for message, translation in self._pairs(entry):
                    texts = " ".join(message.split()), " ".join(translation.split())
                    if all(texts):
                        yield texts if forward else texts[::-1]

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


@mtplug.hookimpl
def register_corpora(register):
    register("gettext", Gettext, GettextConfig)
