"""mtplug-score: BLEU, chrF2++ and TER of a file, and significance against a baseline."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mtplug.cli import common


def main(argv: list[str] | None = None) -> int:
    made = common.parser("mtplug-score", "Score translations against references.")
    made.add_argument("hypothesis", type=Path, metavar="HYP", help="one translation a line")
    made.add_argument(
        "--ref", type=Path, nargs="+", required=True, help="one or more reference files"
    )
    made.add_argument("--baseline", type=Path, metavar="HYP2", help="another system to compare")
    made.add_argument("--lang", default="", help="target language, for tokenisation (zh, ja, …)")
    made.add_argument("--lowercase", action="store_true", help="BLEU without regard to case")
    made.add_argument("--tokenize", default="auto", help="of BLEU: auto, 13a, zh, char, moses, …")
    made.add_argument("--samples", type=int, default=1000, help="of the paired bootstrap")
    made.add_argument("--json", action="store_true")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    from mtplug.evaluation.files import compare, parallel_lines, standard_metrics

    files = [args.hypothesis, *args.ref, *([args.baseline] if args.baseline else [])]
    hypotheses, *others = parallel_lines(files)
    references = others[: len(args.ref)]
    metrics = standard_metrics(args.lang, args.tokenize, args.lowercase)
    scores = [metric.score(hypotheses, references) for metric in metrics]
    rows: list[dict[str, Any]] = [
        {"metric": s.label, "score": s.value, "signature": s.signature} for s in scores
    ]
    if args.baseline:
        for row, other in zip(
            rows, compare(metrics, hypotheses, others[-1], references, args.samples), strict=True
        ):
            row.update(other)
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row, score in zip(rows, scores, strict=True):
        print(score)
        if args.baseline:
            low, high = row["interval"]
            print(
                f"  baseline {row['baseline']:.2f}, difference {row['difference']:+.2f} "
                f"(95 % of {args.samples} resamples: {low:+.2f} … {high:+.2f}), p = {row['p']:.4f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
