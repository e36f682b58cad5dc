"""mtplug-bench: benchmark suites, with their conditions."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from mtplug.cli import common


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] not in ("list", "run") and not argv[0].startswith("-"):
        argv = ["run", *argv]  # `mtplug-bench attention` can mean nothing else
    made = common.Parser(prog="mtplug-bench", description="List and run benchmark suites.")
    commands = made.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="the suites there are")
    running = commands.add_parser("run", help="run a suite")
    running.add_argument("suite")
    running.add_argument("overrides", nargs="*", metavar="key=value", help="the suite's settings")
    running.add_argument("--output", type=Path, help="write rows and conditions as JSON")
    running.add_argument("--plot", type=Path, metavar="FILE", help="draw them, as PNG, PDF or SVG")
    running.add_argument(
        "--peers",
        action="store_true",
        help="measure beside other toolkits, which are installed in environments of their own",
    )
    for command in (listing, running):
        common.add_common(command)
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    from mtplug.errors import UserError
    from mtplug.plugins import host

    if args.command == "list":
        for name in host().names("benchmarks"):
            try:
                component = host().component("benchmarks", name)
            except UserError as error:  # it is claimed twice, or its plugin fails by now
                print(f"not listed: {error}", file=sys.stderr)
                continue
            print(f"{name}  {(component.config.__doc__ or '').splitlines()[0]}")
        common.tell_failed()
        return 0
    from mtplug.config.build import component_from_overrides, to_plain

    overrides = args.overrides
    if args.peers:
        known = {
            f.name for f in dataclasses.fields(host().component("benchmarks", args.suite).config)
        }
        if "peers" not in known:
            raise UserError(f"--peers: suite {args.suite} has no peers; leave --peers out")
        overrides = ["peers=[all]", *overrides]
    selected = component_from_overrides("benchmarks", args.suite, overrides)
    suite = selected.build()
    if args.plot and not hasattr(suite, "plot"):
        raise UserError(f"--plot: suite {args.suite} has no plot; leave --plot out")
    rows = suite.run()
    conditions = {**_conditions(), "suite": args.suite, "settings": to_plain(selected.config)}
    if hasattr(suite, "conditions"):
        conditions |= suite.conditions()
    for key, value in conditions.items():
        print(f"{key}: {value}")
    print()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = [columns, *([str(row.get(c, "")) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    left_out = getattr(suite, "left_out", [])
    for text in left_out:
        print(f"left out: {text}")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        whole = {"conditions": conditions, "rows": rows, "left_out": left_out}
        args.output.write_text(json.dumps(whole, indent=1))
    if args.plot:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        suite.plot(rows, args.plot)
    return 0


def _conditions() -> dict[str, object]:
    import platform
    from importlib.metadata import version

    import torch

    import mtplug
    from mtplug.training.run import processor

    return {
        "mtplug": mtplug.__version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


if __name__ == "__main__":
    sys.exit(main())
