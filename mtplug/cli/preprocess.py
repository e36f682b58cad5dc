"""mtplug-preprocess: only the tokenizer and the binary store."""

from __future__ import annotations

import argparse
import sys

from mtplug.cli import common, train

EPILOG = f"""\
{train.GROUPS}
examples:
  mtplug-preprocess configs/demo.yaml --workers 8
  mtplug-preprocess configs/demo.yaml run_dir=runs/wide tokenizer.vocab_size=16000

mtplug-train with the same settings takes what is there."""


def main(argv: list[str] | None = None) -> int:
    made = train.arguments(
        "mtplug-preprocess",
        "Write the tokenizer and the binary store that mtplug-train would.",
        EPILOG,
    )
    made.add_argument("--workers", type=int, help="processes; the same as data.workers=N")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    if args.workers is not None:
        args.overrides.append(f"data.workers={args.workers}")
    run = train.configuration(args)
    if run is not None:
        from mtplug.training.run import prepare

        prepare(run, common.report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
