"""python -m mtplug_terminology: a glossary of the words that two parallel files translate alike."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mtplug.cli import common


def main(argv: list[str] | None = None) -> int:
    made = common.parser(
        "python -m mtplug_terminology",
        "Make a glossary of single words from parallel text, to train with; written to standard output.",
        "example:\n  python -m mtplug_terminology train.en train.de > glossary.tsv",
    )
    made.add_argument("source", type=Path, help="text file")
    made.add_argument("target", type=Path, help="its translation, line by line")
    made.add_argument("--least", type=int, default=5, help="sentences that a word must occur in")
    made.add_argument("--dice", type=float, default=0.4, help="least association, from 0 to 1")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    from mtplug.evaluation.files import parallel_lines
    from mtplug_terminology.glossary import extract

    left, right = parallel_lines([args.source, args.target])
    for source, forms in extract(zip(left, right, strict=True), args.least, args.dice).items():
        print(f"{source}\t{' | '.join(forms)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
