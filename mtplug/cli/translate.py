"""mtplug-translate: text in, translations out, line by line."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import IO

from mtplug.cli import common

EPILOG = """\
examples:
  echo "Ein Hund rennt." | mtplug-translate runs/demo
  mtplug-translate runs/demo --input in.de --output out.en search.beam=10
  mtplug-translate runs/demo --format jsonl --nbest 3 < in.de"""


def main(argv: list[str] | None = None) -> int:
    made = common.parser(
        "mtplug-translate", "Translate lines of text with a trained model.", EPILOG
    )
    made.add_argument("run", type=Path, help="the run's folder")
    made.add_argument("overrides", nargs="*", metavar="search.key=value", help="settings")
    made.add_argument("--input", type=Path, help="text file; default: standard input")
    made.add_argument("--output", type=Path, help="default: standard output")
    made.add_argument("--format", choices=("text", "jsonl"), default="text")
    made.add_argument("--checkpoint", default="best", help="best, last, averaged or step-N")
    made.add_argument("--beam", type=int, help="the same as search.beam=N")
    made.add_argument("--nbest", type=int, help="the same as search.nbest=N")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument("--chunk", type=int, default=500, help="lines read at a time")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    from mtplug.errors import UserError
    from mtplug.translator import load

    for key in ("beam", "nbest"):
        if getattr(args, key) is not None:
            args.overrides.append(f"search.{key}={getattr(args, key)}")
    if args.input is not None and not args.input.is_file():
        raise UserError(f"--input {args.input}: no such file")
    translator = load(args.run, args.checkpoint, args.device, args.overrides)
    source = args.input.open("rb") if args.input else sys.stdin.buffer
    target = args.output.open("w", encoding="utf-8") if args.output else _utf8_stdout()
    # A person at the keyboard waits for an answer to each line.
    chunk = 1 if source.isatty() else max(args.chunk, 1)
    number = 0
    bad: list[int] = []
    try:
        while lines := list(itertools.islice(source, chunk)):
            texts = []
            for line in lines:
                number += 1
                try:
                    texts.append(line.decode("utf-8"))
                except UnicodeDecodeError:
                    bad.append(number)
                    texts.append(line.decode("utf-8", errors="replace"))
            for text, found in zip(texts, translator.nbest(texts), strict=True):
                target.write(_format(text, found, args.format))
            target.flush()
    finally:
        if args.input:
            source.close()
        if args.output:
            target.close()
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (" …" if len(bad) > 5 else "")
        print(f"{len(bad)} lines were not valid UTF-8 (unreadable bytes replaced): {shown}",
              file=sys.stderr)  # fmt: skip
    if translator.too_long:
        done = "split" if translator.on_long == "split" else "cut"
        print(f"{translator.too_long} lines were longer than {translator.max_length} tokens "
              f"and were {done}", file=sys.stderr)  # fmt: skip
    return 0


def _utf8_stdout() -> IO[str]:
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    return sys.stdout


def _format(source: str, found: list, style: str) -> str:
    if style == "text":
        return "".join(t.text + "\n" for t in found)
    translations = [
        {
            "text": t.text,
            "score": round(t.score, 6),
            "tokens": t.tokens,
            "token_scores": [round(s, 6) for s in t.token_scores],
            "finished": t.finished,
        }
        for t in found
    ]
    entry = {"source": source.strip(), **translations[0]}
    if len(translations) > 1:
        entry["nbest"] = translations
    return json.dumps(entry, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
