"""Lines of a stream in groups: what is there is handed on, so that answers need not wait for the end."""

from __future__ import annotations

import difflib
import json
import math
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from mtplug.data.corpora import whole_characters
from mtplug.search.wishes import Wishes

LINGER = 0.03  # seconds; how long a group waits for more lines


@dataclass
class Line:
    """One line of input.

    Attributes:
        number: counted from 1.
        source: its text.
        target: a given translation, to be scored; None: there is none.
        wishes: what its translation must hold.
        adapter: name of the adapter that translates it; empty: as the command line says.
        target_lang, source_lang: codes of its languages; empty: as the command line says.
        addressed: its text with a tag of these in front; empty: they say nothing.
        extra: keys of a JSON line that mean nothing here, such as `id`; handed through.
        notes: what was odd about it.
        error: why it cannot be translated; empty if it can.
    """

    number: int
    source: str = ""
    target: str | None = None
    wishes: Wishes | None = None
    adapter: str = ""
    target_lang: str = ""
    source_lang: str = ""
    addressed: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: str = ""


def groups(stream: IO[bytes], size: int, documents: bool = False) -> Iterator[list[bytes]]:
    """At most `size` lines at a time, fewer if more don't come at once; memory stays bounded.

    Args:
        documents: fewer only behind an empty line, for what comes before belongs together.
    """
    lines: queue.Queue[bytes | Exception | None] = queue.Queue(2 * size)

    def read() -> None:
        try:
            for line in stream:
                lines.put(line)
            lines.put(None)
        except Exception as error:
            lines.put(error)

    threading.Thread(target=read, daemon=True).start()
    ended = False
    while not ended:
        group: list[bytes] = []
        until = 0.0
        while len(group) < size:
            try:
                whole = group and not (documents and group[-1].strip())
                wait = max(until - time.monotonic(), 0) if whole else None
                item = lines.get(timeout=wait)
            except queue.Empty:
                break
            if isinstance(item, Exception):
                if group:  # what came before, such as the end of a damaged file, is answered
                    yield group
                raise item
            if item is None:
                ended = True
                break
            until = until or time.monotonic() + LINGER
            group.append(item)
        if group:
            yield group


def parse(raw: bytes, number: int, style: str) -> Line:
    """A line of `style` text or jsonl; never fails, see `Line.error`."""
    notes = []
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", errors="replace")
        notes.append("not valid UTF-8, unreadable bytes replaced")
    text = text.removesuffix("\n").removesuffix("\r")
    if number == 1:
        text = text.removeprefix("\ufeff")  # the mark that editors of Windows begin files with
    line = Line(number, text, notes=notes)
    if style == "jsonl":
        line.source = ""
        try:
            made = (
                json.loads(text, parse_float=_number, parse_constant=_number)
                if text.strip()
                else {"source": ""}
            )
            _take(line, made)
        except json.JSONDecodeError as error:
            line.error = f"no JSON: {error}"
        except RecursionError:
            line.error = "no JSON: nested too deeply"
        except ValueError as error:
            line.error = str(error)
    return line


_KEYS = ("source", "target", "prefix", "required", "forbidden", "adapter")
_SOCKEYE = {"constraints": "required", "avoid": "forbidden", "target_prefix": "prefix"}


def _take(line: Line, entry: Any) -> None:
    if isinstance(entry, dict):  # also of a line that cannot be read
        line.extra = {key: value for key, value in entry.items() if key not in _KEYS}
        line.notes += [
            f"'{key}' is handed through unread; '{meant}' is read"
            for key in line.extra
            if (meant := _meant(key)) and meant not in entry
        ]
    if not isinstance(entry, dict) or not isinstance(entry.get("source"), str):
        raise ValueError('expected {"source": "text", …}')
    line.source = _encodable(entry.pop("source"), line)
    if entry.get("adapter") is None:
        entry.pop("adapter", None)  # none, as where it is left out
    for name in ("target", "prefix", "adapter"):
        if not isinstance(entry.get(name, ""), str):
            raise ValueError(f"'{name}' is no text")
    if "target" in entry:
        line.target = _encodable(entry.pop("target"), line)
    line.adapter = _encodable(entry.pop("adapter", ""), line)
    for name in ("target_lang", "source_lang"):  # which other programs may want to read again
        if isinstance(said := line.extra.get(name), str):
            setattr(line, name, _encodable(said, line))
    prefix = _encodable(entry.pop("prefix", ""), line)
    required = [[f] if isinstance(f, str) else f for f in _list(entry, "required")]
    forbidden = _list(entry, "forbidden")
    if not all(isinstance(forms, list) and forms for forms in required):
        raise ValueError("'required' is a list of phrases, or of lists of forms")
    for phrase in [*forbidden, *(form for forms in required for form in forms)]:
        if not isinstance(phrase, str) or not phrase.strip():
            raise ValueError(f"'required' and 'forbidden' hold phrases, not {phrase!r}")
    line.wishes = Wishes(
        prefix,
        [[_encodable(form, line) for form in forms] for forms in required],
        [_encodable(phrase, line) for phrase in forbidden],
    )


def _meant(key: str) -> str:
    """The key that is meant by one that is not read, if that is likely."""
    if key in _SOCKEYE:
        return _SOCKEYE[key]
    return next(iter(difflib.get_close_matches(key, _KEYS, 1, 0.85)), "")


def _list(entry: dict[str, Any], name: str) -> list[Any]:
    found = entry.pop(name, [])
    if not isinstance(found, list):
        raise ValueError(f"'{name}' is no list")
    return found


def _encodable(text: str, line: Line) -> str:
    whole = whole_characters(text)
    note = "halves of surrogate pairs replaced"
    if whole != text and note not in line.notes:
        line.notes.append(note)
    return whole


def _number(text: str) -> float:
    """Of JSON, which has no NaN and no Infinity, nor room for 1e400."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"no JSON: {text} is no finite number")
    return value
