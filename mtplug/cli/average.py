"""mtplug-average: average the weights of checkpoints."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from mtplug.cli import common
from mtplug.errors import UserError


def main(argv: list[str] | None = None) -> int:
    made = common.parser("mtplug-average", "Average the weights of a run's checkpoints.")
    made.add_argument("run", type=Path, help="the run's folder")
    made.add_argument("checkpoints", nargs="*", help="names such as step-00001000")
    made.add_argument(
        "--last", type=int, default=5, help="instead of names: how many of the last ones"
    )
    made.add_argument(
        "--best", type=int, metavar="N",
        help="instead of names: the N that validated best, of those that are there",
    )  # fmt: skip
    made.add_argument("--name", default="averaged", help="name of the new checkpoint")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    from mtplug.training.checkpoints import Checkpoints, adapter_of, average, read_state

    checkpoints = Checkpoints(args.run / "checkpoints")
    if not args.name or args.name.startswith(".") or "/" in args.name:
        raise UserError(f"--name '{args.name}': that is no name of a checkpoint; choose another")
    if args.name in ("best", "last") or args.name.startswith("step-"):
        raise UserError(f"--name {args.name}: that name is taken; choose another")
    if args.last < 1:
        raise UserError(f"--last {args.last}: must be at least 1")
    if args.best is not None:
        if args.checkpoints or args.best < 1:
            raise UserError(f"--best {args.best}: must be at least 1, and no names beside it")
        paths = best(args.run, checkpoints.steps(), args.best)
    elif args.checkpoints:
        paths = [checkpoints.find(name) for name in args.checkpoints]
    else:
        # One that was saved only to go on from would be averaged by chance.
        paths = (checkpoints.scheduled() or checkpoints.steps())[-args.last :]
        if not paths:
            checkpoints.find("last")  # says what is missing
    there = checkpoints.folder / args.name
    if there.exists():
        state = read_state(there) if (there / "state.json").is_file() else {}
        made_of = state.get("sources")
        what = f", the average of {', '.join(made_of)}" if made_of else ""
        raise UserError(f"{there} is there already{what}: give another --name, or remove it")
    update = max(read_state(p, {"update": int})["update"] for p in paths)
    names = [p.name for p in paths]
    state = {"update": update, "sources": names}
    path = checkpoints.save(args.name, average(paths), state, adapter=adapter_of(paths[0]))
    print(f"{path}: average of {', '.join(names)}")
    return 0


def best(run_dir: Path, steps: list[Path], count: int) -> list[Path]:
    """Of the checkpoints `steps` those that scored best by `validation.best_metric`, in their order."""
    from mtplug.training.trackers import read_events
    from mtplug.training.validation import higher_is_better, metrics_of
    from mtplug.translator import load_run

    run = load_run(run_dir)
    key, task = run.validation.best_metric, run.task.build()
    rises = higher_is_better(metrics_of(run, task.target_lang), key)
    scores = {
        event["update"]: event["scores"][key]
        for event in read_events(run_dir / "metrics.jsonl")
        if event["event"] == "validation" and key in event["scores"]
    }
    of = {p: scores.get(int(p.name.removeprefix("step-")), math.nan) for p in steps}
    known = [path for path, score in of.items() if not math.isnan(score)]
    if len(known) < count:
        raise UserError(
            f"--best {count}: {run_dir} has {len(known)} checkpoints with a {key}; name them, or let a run keep more "
            "(checkpoint.keep_last)"
        )
    return sorted(sorted(known, key=of.__getitem__, reverse=rises)[:count])


if __name__ == "__main__":
    sys.exit(main())
