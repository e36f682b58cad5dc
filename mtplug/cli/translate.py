"""mtplug-translate: text in, translations out, line by line."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mtplug.cli import common
from mtplug.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mtplug.cli.lines import Line
    from mtplug.translator import Translation, Translator

EPILOG = """\
examples:
  echo "Ein Hund rennt." | mtplug-translate runs/demo
  mtplug-translate runs/demo --input in.de --output out.en search.beam=10
  mtplug-translate runs/demo --format jsonl --nbest 3 < in.de
  mtplug-translate runs/demo --input-format jsonl < constraints.jsonl    # docs/search.md
  mtplug-translate runs/a --ensemble runs/b --checkpoint best,last < in.de
  mtplug-translate runs/base --adapter runs/legal < in.de           # docs/peft.md
  mtplug-translate runs/demo --score given.en < in.de
  mtplug-translate runs/demo --score given.en --alignment links < in.de
  mtplug-translate runs/demo --backend ctranslate2 --quantization int8 < in.de"""


def main(argv: list[str] | None = None) -> int:
    made = common.parser(
        "mtplug-translate", "Translate lines of text with a trained model.", EPILOG
    )
    made.add_argument("run", type=Path, help="the run's folder")
    made.add_argument("overrides", nargs="*", metavar="search.key=value", help="settings")
    made.add_argument(
        "--input", type=Path, help="text file, also .gz, .xz or .zst; default: standard input"
    )
    made.add_argument("--output", type=Path, help="default: standard output")
    made.add_argument("--format", choices=("text", "jsonl"), default="text")
    made.add_argument(
        "--input-format", choices=("text", "jsonl"), default="text",
        help="jsonl: objects with source and optionally prefix, required, forbidden, target, adapter, target_lang, source_lang",
    )  # fmt: skip
    made.add_argument(
        "--checkpoint", default="best",
        help="best, last, averaged or step-N; several, with commas, decode as an ensemble",
    )  # fmt: skip
    made.add_argument(
        "--ensemble", action="append", default=[], metavar="RUN[:CHECKPOINT]",
        help="a further run with the same vocabulary that decodes together with the first, with its checkpoint "
        "of the same name unless another is named",
    )  # fmt: skip
    made.add_argument(
        "--adapter", action="append", default=[], metavar="[NAME=]PATH",
        help="an adapter (a run, a checkpoint or a folder) of the run's base, for all lines, or for those "
        "of the input with \"adapter\": \"NAME\"; paths separated by commas are stacked",
    )  # fmt: skip
    made.add_argument(
        "--score", type=Path, metavar="FILE",
        help="score its lines as translations instead of searching; -: targets are in the input",
    )  # fmt: skip
    made.add_argument(
        "--alignment", type=Path, metavar="FILE",
        help="write the source words that each target word attends to most, one or several, in Pharaoh's format: 0-0 1-2",
    )  # fmt: skip
    made.add_argument(
        "--attention-plot", type=Path, metavar="FILE",
        help="draw the first line's attention; one picture for each line if FILE has {line}",
    )  # fmt: skip
    made.add_argument(
        "--target-lang", default="", metavar="CODE",
        help="language to write, of a run with task.language_tags; lines may begin with <2CODE> instead",
    )  # fmt: skip
    made.add_argument(
        "--source-lang", default="", metavar="CODE",
        help="language of the text, where the model is told, as NLLB-200 is; lines may begin with <2TARGET:SOURCE> instead",
    )  # fmt: skip
    made.add_argument("--beam", type=int, help="the same as search.beam=N")
    made.add_argument("--nbest", type=int, help="the same as search.nbest=N")
    made.add_argument(
        "--backend", default="", metavar="NAME",
        help="search with an exported model, such as ctranslate2; exported on first use",
    )  # fmt: skip
    made.add_argument("--quantization", help="of --backend's model, such as int8")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument(
        "--precision", choices=("fp32", "bf16", "auto"), default="fp32",
        help="bf16: faster on devices with instructions for it; auto: bf16 there",
    )  # fmt: skip
    made.add_argument("--chunk", type=int, default=500, help="lines translated at a time, at most")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    from mtplug.cli.lines import groups, parse
    from mtplug.data.corpora.files import opened

    given = None if args.score is None or str(args.score) == "-" else args.score
    _check(args, given)
    adapters = _named(args.adapter)
    translator = _loaded(args, adapters)
    _check_outputs(args, given, translator)
    _check_attention(args, translator)
    files = contextlib.ExitStack()
    source = files.enter_context(opened(args.input)) if args.input else _stdin()
    targets = files.enter_context(opened(given)) if given else None
    for path in (args.output, args.alignment):  # plots, whose names may hold {line}, make their own
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    target = args.output.open("w", encoding="utf-8") if args.output else _utf8_stdout()
    answers = _Answers(args, translator, target)
    number = answered = 0
    shown = _Progress(args)
    together = translator.window > 1 and args.score is None
    try:
        for raw in groups(source, args.chunk, documents=together):
            lines = [parse(one, number + n, args.input_format) for n, one in enumerate(raw, 1)]
            number += len(lines)
            if targets is not None:
                for line, one in itertools.zip_longest(lines, itertools.islice(targets, len(raw))):
                    if one is None:
                        raise UserError(f"--score {given}: no line {line.number}")
                    line.target = parse(one, line.number, "text").source
            for line in lines:
                if args.score is not None and line.target is None:
                    line.error = line.error or "no 'target' to score"
                line.error = line.error or _no_adapter(translator, line)
                line.error = line.error or _address(translator, line)
                line.adapter = line.adapter or ("default" if "default" in adapters else "")
            answers.give(lines)
            answered = number
            shown.advance(raw)
        if targets is not None and next(targets, None) is not None:
            raise UserError(f"--score {given}: more lines than the {number} of the input")
    except KeyboardInterrupt:
        print(f"mtplug-translate: stopped after {answered:,} lines", file=sys.stderr)
        return 130
    finally:
        shown.close()
        files.close()
        answers.close()
    return 2 if answers.failed.count else 0


def _loaded(args: argparse.Namespace, adapters: dict[str, str]) -> Translator:
    """The translator that the options ask for."""
    from mtplug.translator import load

    for key in ("beam", "nbest"):
        if getattr(args, key) is not None:
            args.overrides.append(f"search.{key}={getattr(args, key)}")
    settings = [f"quantization={args.quantization}"] if args.quantization is not None else []
    translator = load(
        args.run,
        args.checkpoint,
        args.device,
        overrides=args.overrides,
        ensemble=args.ensemble,
        backend=args.backend,
        backend_settings=settings,
        precision=args.precision,
        adapters=adapters,
    )
    for option in ("beam", "nbest"):
        if translator.task.aligned and getattr(args, option) is not None:
            raise UserError(f"--{option}: this run labels text and does not search; leave it out")
    if args.target_lang or args.source_lang:
        translator.target_lang, translator.source_lang = args.target_lang, args.source_lang
        if args.target_lang or not translator.task.tags:  # lines may say the target
            translator.address("?")  # what it does not write or read is told at once
    return translator


def _check(args: argparse.Namespace, targets: Path | None) -> None:
    """Raises `UserError` for what is wrong with options by themselves; `targets` is the file of --score."""
    from mtplug.data.corpora.files import PACKED

    if args.score is not None and args.nbest is not None:
        raise UserError("--nbest: --score searches for none; leave one out")
    for option, path in (("--input", args.input), ("--score", targets)):
        if path is not None and path.is_dir():
            raise UserError(f"{option} {path}: that is a folder; give a file of lines")
        if path is not None and not path.exists():
            raise UserError(f"{option} {path}: no such file")
    if args.output and args.output.suffix in PACKED:
        raise UserError(
            f"--output {args.output}: plain text is written; leave {args.output.suffix} off"
        )
    if args.chunk < 1:
        raise UserError(f"--chunk {args.chunk}: must be at least 1")
    if str(args.score) == "-" and args.input_format != "jsonl":
        raise UserError("--score -: the targets need --input-format jsonl; or give a file")
    if args.attention_plot:
        from mtplug.search.plot import check_plot

        check_plot(args.attention_plot)
    if args.quantization is not None and not args.backend:
        raise UserError("--quantization needs a --backend, such as ctranslate2")


def _check_outputs(args: argparse.Namespace, targets: Path | None, translator: Translator) -> None:
    """Raises `UserError` for an output that is one of the inputs, or another output."""
    from mtplug.config import to_plain

    inputs: list[tuple[str, Path | int | None]] = [
        ("--input", args.input), ("--score", targets), ("standard input", None if args.input else 0),
    ]  # fmt: skip
    named = to_plain(translator.search.config) or {}
    inputs += [(f"search.{k}", Path(v)) for k, v in named.items() if isinstance(v, str)]
    written = [
        ("--output", args.output), ("--alignment", args.alignment), ("--attention-plot", args.attention_plot),
    ]  # fmt: skip
    for option, path in written:
        if path is not None:
            common.refuse_overwriting(option, path, inputs)
    if args.output and args.alignment and args.output.resolve() == args.alignment.resolve():
        raise UserError(f"--alignment {args.alignment}: that is --output; write to another file")


def _check_attention(args: argparse.Namespace, translator: Translator) -> None:
    """Raises `UserError` if attention is to be shown, and there is none."""
    from mtplug.translator.attention import why_not

    options = (("--alignment", args.alignment), ("--attention-plot", args.attention_plot))
    asked = [option for option, path in options if path]
    if asked and (why := why_not(translator)):
        raise UserError(f"{asked[0]}: {why}")


def _named(given: list[str]) -> dict[str, str]:
    """Paths of adapters by name; one without a name is the `default`."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        name, path = (name, path) if equals else ("default", text)
        if not name or not path or name in found:
            raise UserError(f"--adapter {text}: expected NAME=PATH, with a name of its own")
        found[name] = path
    return found


def _no_adapter(translator: Translator, line: Line) -> str:
    """Why a line's adapter cannot translate it."""
    if not line.adapter:
        return ""
    check = getattr(translator, "check", None)
    return check(line.adapter) if check else f"adapter '{line.adapter}': load it with --adapter"


def _address(translator: Translator, line: Line) -> str:
    """Have a line addressed in the languages that it says, as far as the model is told any; or why it cannot be."""
    from mtplug.data.corpora import one_line

    task = translator.task
    source = line.source_lang if task.directions is not None else ""
    if not task.tags or not (line.target_lang or source):
        return ""
    told = line.target_lang or translator.target_lang, source or translator.source_lang
    try:
        line.addressed = task.address(one_line(line.source), *told)
    except UserError as error:
        return str(error)
    return ""


class _Progress:
    """A bar on the terminal for a file whose translations don't go there too."""

    def __init__(self, args: argparse.Namespace):
        self.bar = None
        if not args.input or not sys.stderr.isatty() or (not args.output and sys.stdout.isatty()):
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        from mtplug.data.corpora.files import PACKED

        columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[lines]:,} lines"),
                   TimeRemainingColumn())  # fmt: skip
        self.bar = Progress(*columns, console=Console(stderr=True))
        # Of bytes, which are known without reading the file, unless it is packed.
        total = None if args.input.suffix in PACKED else args.input.stat().st_size
        self.task = self.bar.add_task("", total=total, lines=0)
        self.bar.start()

    def advance(self, raw: list[bytes]) -> None:
        if self.bar:
            lines = self.bar.tasks[0].fields["lines"] + len(raw)
            self.bar.update(self.task, advance=sum(map(len, raw)), lines=lines)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


class _Answers:
    """Writes one answer for each line, in order, and remembers what to report at the end."""

    def __init__(self, args: argparse.Namespace, translator: Translator, target: IO[str]):
        self.args, self.translator, self.target = args, translator, target
        self.alignments = args.alignment.open("w", encoding="utf-8") if args.alignment else None
        self.noted: dict[str, _Lines] = {}
        self.failed = _Lines()
        self.first_error = ""
        self.plotted = 0

    def give(self, lines: list[Line]) -> None:
        from mtplug.translator import NoPosition, TooLong

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
        from mtplug.data.tags import UnknownTag
        from mtplug.translator import TooLong

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
        from mtplug.search.plot import draw_attention

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


def _stdin() -> IO[bytes]:
    """Standard input as a file object of our own: the thread that waits for lines would hold the lock
    of `sys.stdin`, and Python aborts if it cannot take that when it exits, as after Ctrl-C."""
    if sys.stdin is None:
        raise UserError("standard input is closed; give --input FILE")
    try:
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except OSError:  # replaced by something that is no file
        return sys.stdin.buffer


def _utf8_stdout() -> IO[str]:
    if getattr(sys.stdout, "name", "") == os.devnull:  # what `common.run` opens in its place
        raise UserError("standard output is closed; give --output FILE")
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    return sys.stdout


if __name__ == "__main__":
    sys.exit(main())
