"""mtplug-evaluate: translate a split of a run's data and score it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mtplug.cli import common
from mtplug.errors import UserError

if TYPE_CHECKING:
    from mtplug.config import RunConfig


def main(argv: list[str] | None = None) -> int:
    made = common.parser("mtplug-evaluate", "Translate a split of the run's data and score it.")
    made.add_argument("run", type=Path, help="the run's folder")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="such as search.beam=10")
    made.add_argument("--split", choices=("train", "valid", "test"), default="test")
    made.add_argument("--checkpoint", default="best", help="best, last, averaged or step-N")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument(
        "--precision", choices=("fp32", "bf16", "auto"), default="fp32",
        help="bf16: faster on devices with instructions for it; auto: bf16 there",
    )  # fmt: skip
    made.add_argument("--output", type=Path, help="folder for the translations")
    made.add_argument("--show", type=int, default=0, metavar="N", help="print N translations")
    made.add_argument("--json", action="store_true", help="scores as JSON")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    from mtplug.data.corpora import has_text
    from mtplug.training.run import evaluate
    from mtplug.translator import load_run, translator_of

    if args.show < 0:
        raise UserError(f"--show {args.show}: must be 0 or more")
    if args.show and args.json:
        raise UserError("--show: JSON holds scores only; leave --show or --json out")
    run = load_run(args.run, args.overrides)
    if not getattr(run.data, args.split):
        raise UserError(f"{args.run} has no data.{args.split}; set it, or choose another --split")
    translator = translator_of(run, args.run, args.checkpoint, args.device, args.precision)
    if args.output and not translator.task.translates:
        raise UserError(f"--output: task {run.task.name} has no translations to write")
    parts = translator.task.pairs(run, args.split)
    if args.output:  # what is wrong with it is told before there is anything to lose
        args.output.mkdir(parents=True, exist_ok=True)
        for label, _ in parts:
            common.refuse_overwriting("--output", args.output / f"{label}.txt", _corpora(run))
    results = evaluate(run, translator, args.split, common.report)
    if args.json:
        found = {
            label: {s.label: {"score": s.value, "signature": s.signature} for s in scores}
            for label, scores, _ in results
        }
        print(json.dumps(found, indent=1))
    for (label, scores, hypotheses), (_, pairs) in zip(results, parts, strict=True):
        if args.json:
            continue
        count = sum(map(has_text, pairs))  # without the ends of documents
        print(f"{label}: {count} sentences, checkpoint {args.checkpoint}")
        for score in scores:
            print(f"  {score}")
        shown = min(args.show, len(hypotheses))
        for i in (k * len(pairs) // shown for k in range(shown)):
            print(f"\n  source       {pairs[i][0]}\n  reference    {pairs[i][1]}")
            print(f"  translation  {hypotheses[i]}")
    for label, _, hypotheses in results if args.output else []:
        if hypotheses:
            text = "\n".join(hypotheses) + "\n"
            (args.output / f"{label}.txt").write_text(text, encoding="utf-8")
    return 0


def _corpora(run: RunConfig) -> list[tuple[str, Path]]:
    """The files of the run's data."""
    return [
        (f"data.{split}", Path(getattr(corpus.config, "root", "") or run.data.root, value))
        for split in ("train", "valid", "test")
        for corpus in getattr(run.data, split)
        for setting in vars(corpus.config).values()
        for value in (setting if isinstance(setting, list) else [setting])
        if isinstance(value, str)
    ]


if __name__ == "__main__":
    sys.exit(main())
