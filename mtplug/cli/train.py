"""mtplug-train: from raw text to a trained and scored model."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from mtplug.cli import common

GROUPS = """\
Groups: seed run_dir task data tokenizer architecture criterion optimizer lr_scheduler peft
training validation checkpoint logging search. `mtplug-plugins show KIND NAME` lists the settings
of a component, docs/configuration.md those of the other groups.
"""
EPILOG = f"""\
{GROUPS}
examples:
  mtplug-train configs/demo.yaml
  mtplug-train configs/demo.yaml run_dir=runs/wide architecture.dim=512 optimizer.lr=7e-4

Run again, the same command goes on from the last checkpoint."""


def arguments(name: str, description: str, epilog: str = EPILOG) -> common.Parser:
    made = common.parser(name, description, epilog)
    made.add_argument("config", type=Path, help="YAML file")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="settings")
    made.add_argument("--print-config", action="store_true", help="show the result and stop")
    made.add_argument(
        "--explain", action="store_true", help="show where every value came from and stop"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    made = arguments("mtplug-train", "Train a model from raw text, or go on with its training.")
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="check files and settings, build the model, try one update, write nothing",
    )
    made.add_argument(
        "--estimate",
        action="store_true",
        help="prepare the data, print parameters, memory and time of an epoch, and stop",
    )
    return common.run(made, body, argv)


def configuration(args: argparse.Namespace):
    """The run that the arguments ask for, or None if it was only to be shown."""
    common.configure(args)
    from mtplug.config import explain, load_config, to_yaml

    run, origins = load_config(args.config, args.overrides)
    if (args.print_config or args.explain) and not common.first_process():
        return None
    if args.print_config:
        print(to_yaml(run), end="")
        return None
    if args.explain:
        rows = explain(run, origins)
        wide = [max(len(r[i]) for r in rows) for i in (0, 1)]
        for key, value, origin in rows:
            print(f"{key:<{wide[0]}}  {value:<{min(wide[1], 40)}}  {origin}")
        return None
    return run


def body(args: argparse.Namespace) -> int:
    run = configuration(args)
    if run is None:
        return 0

    recorded = args.config.parent / "environment.json"
    if recorded.is_file() and Path(run.run_dir).resolve() != args.config.parent.resolve():
        common.report(
            f"run_dir: {run.run_dir}; {args.config} is that of the run in {args.config.parent}, which "
            f"run_dir={args.config.parent} goes on with"
        )
    if args.dry_run:
        if not common.first_process():
            return 0
        from mtplug.training.dry_run import dry_run
        from mtplug.training.run import check

        check(run, common.report)
        dry_run(run, common.report)
        return 0
    from mtplug.training.run import estimate, train

    if args.estimate:
        estimate(run, common.report)
        return 0

    run_dir = train(run, common.report)
    shown = shlex.quote(f"./{run_dir}" if str(run_dir).startswith("-") else str(run_dir))
    common.report(f"done: {run_dir}; translate with  mtplug-translate {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
