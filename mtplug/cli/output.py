"""What mtplug-translate writes: an answer for each line, and at the end what there is to know of them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from mtplug.cli.lines import Line
from mtplug.data.tags import UnknownTag
from mtplug.errors import UserError
from mtplug.search.plot import draw_attention
from mtplug.translator import NoPosition, TooLong, Translation, Translator


class Output:
    """Writes one answer for each line, in order, and remembers what to report at the end."""

    def __init__(self, args: argparse.Namespace, translator: Translator, target: IO[str]):
        self.args, self.translator, self.target = args, translator, target
        self.alignments = args.alignment.open("w", encoding="utf-8") if args.alignment else None
        self.noted: dict[str, _Lines] = {}
        self.failed = _Lines()
        self.first_error = ""
        self.plotted = 0

    def give(self, lines: list[Line]) -> None:
        stop = found = None
        while found is None:
            able = [line for line in lines if not line.error]
            try:
                found = self._translations(able)
            except NoPosition as error:
                for number, why in error.why.items():
                    able[number].error = why
            except TooLong as error:  # data.on_long is error: what comes before is still answered
                message = str(error).replace(f"sentence {error.number + 1}", "", 1).strip()
                bad = able[error.number].number
                stop = UserError(f"line {bad} {message}")
                lines = [line for line in lines if line.number < bad]
            except UserError as error:
                self._refuse(able, error)
        of = {line.number: row for line, row in zip(able, found, strict=True)}
        for line in lines:
            row = of.get(line.number, [])
            for note in [*line.notes, *(row[0].notes if row else ())]:
                self._note(note.partition(":")[0], line)
            if line.error:
                self.failed.add(line.number)
                self.first_error = self.first_error or f"line {line.number}: {line.error}"
            if any(t.unmet for t in row):
                others = "" if row[0].unmet else " by translations below the best"
                self._note(f"not all wishes met{others}", line)
            self.target.write(
                self._text(line, row) if self.args.format == "text" else self._json(line, row)
            )
            if self.alignments:
                self.alignments.write(self._by_output_line(row, _pharaoh))
            self._plot(line, row)
        self.target.flush()
        if stop is not None:
            raise stop

    def _refuse(self, lines: list[Line], error: UserError) -> None:
        """Give lines whose tag or wishes cannot be taken its message; if there are none, `error` is of something else."""
        for line in lines:
            try:
                self.translator.address(line.addressed or line.source)
                if line.wishes:
                    self._translations([line])
            except TooLong:
                continue
            except UserError as refused:
                if line.wishes or isinstance(refused, UnknownTag):
                    line.error = str(refused)
        if not any(line.error for line in lines):
            raise error

    def _translations(self, lines: list[Line]) -> list[list[Translation]]:
        sources = [line.addressed or line.source for line in lines]
        shown = (self.args.attention_plot, self.args.alignment)
        attention = self.args.format == "jsonl" or any(shown)
        chosen: dict[str, Any] = {}
        if self.args.adapter:
            chosen["adapters"] = [line.adapter for line in lines]
        if self.args.score is not None:
            targets = [line.target or "" for line in lines]
            scored = self.translator.score(sources, targets, attention, **chosen)
            return [[t] for t in scored]
        wishes = [line.wishes for line in lines]
        scores = self.args.format == "jsonl"
        return self.translator.nbest(
            sources, wishes=wishes, attention=attention, token_scores=scores, **chosen
        )

    def _text(self, line: Line, row: list[Translation]) -> str:
        if self.args.score is not None:
            return "\n" if line.error else f"{row[0].score:.6f}\n"
        return self._by_output_line(row, lambda t: t.text)

    def _by_output_line(self, row: list[Translation], of: Callable) -> str:
        # As many lines for each line of input, so that one knows which belong together.
        count = 1 if self.args.score is not None or self.args.format == "jsonl" else self._count
        texts = [of(t) for t in row[:count]]
        return "".join(text + "\n" for text in texts + [""] * (count - len(texts)))

    @property
    def _count(self) -> int:
        """Translations of each line that are asked for."""
        return getattr(self.translator.search.config, "nbest", 1)

    def _json(self, line: Line, row: list[Translation]) -> str:
        handed = {key: value for key, value in line.extra.items() if key not in _OURS}
        entry: dict[str, Any] = {**handed, "source": line.source.strip()}
        if line.error:
            entry = {**handed, "line": line.number, "error": line.error}
        else:
            answers = [_fields(t) for t in row]
            entry |= answers[0]
            if row[0].source_tokens is not None:
                entry["source_tokens"] = row[0].source_tokens
            notes = [*line.notes, *row[0].notes]
            if notes:
                entry["notes"] = notes
            if self._count > 1 and self.args.score is None:
                entry["nbest"] = answers
        text = json.dumps(entry, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError:  # what was handed through holds halves of characters
            text = json.dumps(entry)
        return text + "\n"

    def _plot(self, line: Line, row: list[Translation]) -> None:
        path = self.args.attention_plot
        if path is None or not row or not row[0].tokens or row[0].source_tokens == []:
            return
        each = "{line}" in str(path)
        if self.plotted and not each:
            return
        self.plotted += 1
        missing = draw_attention(row[0], Path(str(path).replace("{line}", str(line.number))))
        if missing:
            self._note(
                f"no font here has {' '.join(missing[:5])}, drawn as boxes (install one, such as "
                "Noto Sans CJK)", line,
            )  # fmt: skip

    def _note(self, text: str, line: Line) -> None:
        self.noted.setdefault(text, _Lines()).add(line.number)

    def close(self) -> None:
        """Close the file and say, whatever ended the work, what there is to know of its lines."""
        if self.args.output:
            self.target.close()
        if self.alignments:
            self.alignments.close()
        for note, lines in self.noted.items():
            print(f"{lines}: {note}", file=sys.stderr)
        if self.failed.count:
            print(f"{self.failed}: not translated; {self.first_error}", file=sys.stderr)


class _Lines:
    """How many, and the numbers of the first: input may go on for ever."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[int] = []

    def add(self, number: int) -> None:
        self.count += 1
        if len(self.first) < 5:
            self.first.append(number)

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.first)) + (" …" if self.count > len(self.first) else "")
        return f"{self.count} line{'s' * (self.count > 1)} ({shown})"


def _pharaoh(t: Translation) -> str:
    return " ".join(f"{source}-{target}" for source, target in t.word_alignment or ())


def _fields(t: Translation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": t.text,
        "score": _number(t.score),
        "tokens": t.tokens,
        "token_scores": [_number(s) for s in t.token_scores],
        "finished": t.finished,
    }
    if t.alignment is not None:
        found["alignment"] = t.alignment
        found["word_alignment"] = t.word_alignment
    if t.unmet:
        found["unmet"] = t.unmet
    return found


# An earlier answer that comes as input again must not pass for this one's.
_OURS = ("text", "score", "tokens", "token_scores", "finished", "source_tokens", "alignment",
         "word_alignment", "nbest", "notes", "unmet", "error")  # fmt: skip


def _number(value: float) -> float | None:
    """JSON has no infinity."""
    return round(value, 6) if abs(value) < float("inf") else None
