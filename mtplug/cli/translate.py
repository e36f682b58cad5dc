"""mtplug-translate: text in, translations out, line by line."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mtplug.cli import common
from mtplug.errors import UserError

if TYPE_CHECKING:
    from mtplug.cli.lines import Line
    from mtplug.translator import Translator

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
    from mtplug.cli.output import Output
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
    output = Output(args, translator, target)
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
            output.give(lines)
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
        output.close()
    return 2 if output.failed.count else 0


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
