"""mtplug-fisher: the Fisher information of a run, for elastic weight consolidation."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mtplug.cli import common
from mtplug.errors import UserError

EPILOG = """\
example: learn a second domain, and keep the first (criterion `ewc`)
  mtplug-fisher runs/first
  mtplug-train second.yaml training.init_from=runs/first \\
    criterion='{name: ewc, fisher: runs/first/fisher.safetensors, weight: 1}'"""


def main(argv: list[str] | None = None) -> int:
    made = common.parser(
        "mtplug-fisher", "Measure which weights a run's training data depends on.", EPILOG
    )
    made.add_argument("run", type=Path, help="the run's folder; its training corpora must be there")
    made.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings, such as data.root"
    )
    made.add_argument("--checkpoint", default="best", help="best (default), last or step-N")
    made.add_argument(
        "--sentences", type=int, default=1000, help="training sentences (default 1000)"
    )
    made.add_argument("--output", type=Path, help="default: RUN/fisher.safetensors")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    from mtplug.training.checkpoints import Checkpoints, weights_file
    from mtplug.training.continuing import check_same_data, check_same_settings
    from mtplug.training.fisher import fisher, some_sentences, write
    from mtplug.training.lock import only_writer
    from mtplug.translator import load_run, translator_of

    if args.sentences < 1:
        raise UserError(f"--sentences {args.sentences}: must be at least 1")

    def done(count: int) -> None:
        if count % 100 == 0:
            common.report(f"{count:,} sentences")

    run = load_run(args.run, args.overrides)
    output = args.output or args.run / "fisher.safetensors"
    if not os.access(output.parent, os.W_OK):
        raise UserError(f"{output.parent} cannot be written to; give --output FILE")
    find = Checkpoints(args.run / "checkpoints").find
    weights = [("--checkpoint", weights_file(find(args.checkpoint)))]
    translator = translator_of(run, args.run, args.checkpoint, args.device)
    model, task = translator.model, translator.task
    device = next(model.parameters()).device
    files = task.checksums(run)
    common.refuse_overwriting("--output", output, [*weights, *(("data", Path(f)) for f in files)])
    check_same_settings(run, args.run)
    check_same_data(files, args.run)
    with only_writer(args.run):
        task.prepare(run, args.run, common.report)
    sentences = (b.to(device) for b in some_sentences(task.training_data(run), args.sentences))
    information = fisher(model, sentences, done)
    about = {"run": str(args.run), "checkpoint": args.checkpoint, "sentences": str(args.sentences)}
    write(output, model, information, task, about)
    largest = max(information, key=lambda n: float(information[n].mean()))
    print(f"{output}: {len(information)} tensors; the greatest mean is that of {largest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
