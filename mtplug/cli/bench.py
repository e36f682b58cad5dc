"""mtplug-bench: benchmark suites, with their conditions."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtplug.cli import common
from mtplug.errors import MtplugError, UserError

if TYPE_CHECKING:
    from mtplug.registry import Component


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
    return common.run(made, lambda args: body(args, argv), argv)


def body(args: argparse.Namespace, argv: list[str]) -> int:
    common.configure(args)
    from mtplug.plugins import host

    if args.command == "list":
        return list_suites()
    from mtplug.config.build import component_from_overrides, to_plain

    overrides = args.overrides
    if args.peers:
        fields = dataclasses.fields(host().component("benchmarks", args.suite).config)
        if not any(f.name == "peers" for f in fields):
            raise UserError(f"--peers: suite {args.suite} has no peers; leave --peers out")
        overrides = ["peers=[all]", *overrides]
    selected = component_from_overrides("benchmarks", args.suite, overrides)
    suite = selected.build()
    if args.plot and not hasattr(suite, "plot"):
        raise UserError(f"--plot: suite {args.suite} has no plot; leave --plot out")
    if args.plot and args.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UserError(f"--plot {args.plot}: name it .png, .pdf or .svg")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise UserError('--plot needs matplotlib: pip install "mtplug[plots]"')
    for option, file in (("--output", args.output), ("--plot", args.plot)):
        if file:
            _check_writable(option, file)
    origin = _origin(argv)
    with _sigterm_unwinds():
        rows = suite.run()
    left_out = list(getattr(suite, "left_out", []))
    _check_rows(rows, selected.component, left_out)
    own = {**origin, **_conditions(), "suite": args.suite, "settings": to_plain(selected.config)}
    told = suite.conditions() if hasattr(suite, "conditions") else {}
    conditions = {**own, **told, **own}  # a suite adds to what is said of all, and replaces none
    for key, value in conditions.items():
        print(f"{key}: {value}")
    print()
    _print_table(rows)
    for text in left_out:
        print(f"left out: {text}")
    if args.output:
        whole = {"conditions": conditions, "rows": rows, "left_out": left_out}
        args.output.write_text(json.dumps(whole, indent=1, default=_plain))
    if args.plot:
        suite.plot(rows, args.plot)
    return 130 if getattr(suite, "stopped", False) else 0


def list_suites() -> int:
    from mtplug.plugins import host

    for name in host().names("benchmarks"):
        try:
            component = host().component("benchmarks", name)
        except UserError as error:  # it is claimed twice, or its plugin fails by now
            print(f"not listed: {error}", file=sys.stderr)
            continue
        print(f"{name}  {(component.config.__doc__ or '').splitlines()[0]}")
    common.tell_failed()
    return 0


def _check_writable(option: str, file: Path) -> None:
    """Before hours of work, not after.

    Raises:
        UserError: it is a folder.
        OSError: it cannot be written.
    """
    if file.is_dir():
        raise UserError(f"{option} {file}: that is a folder; give a file")
    file.parent.mkdir(parents=True, exist_ok=True)
    there = file.exists()
    file.open("a").close()
    if not there:
        file.unlink()


def _check_rows(rows: Any, component: Component, left_out: list[str]) -> None:
    """Raises `MtplugError` if there is nothing to show, or what there is are no rows."""
    from mtplug.plugins import host

    suite = f"suite {component.name}"
    for row in rows if isinstance(rows, list) else [rows]:
        if not isinstance(row, dict):
            raise MtplugError(
                f"{suite} of plugin {host().plugins[component.plugin]}: run() must give a list of dicts; "
                f"it gave {row!r}"
            )
    if not rows:
        raise UserError(f"{suite}: no rows: " + ("; ".join(left_out) or "nothing was asked for"))


def _print_table(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = [columns, *([str(row.get(c, "")) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def _plain(value: Any) -> Any:
    """A number of NumPy as JSON has it; anything else as text."""
    return value.item() if getattr(value, "size", 0) == 1 else str(value)


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """So that folders a suite has made are removed; then the exit status is as ever."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _origin(argv: list[str]) -> dict[str, str]:
    """What was run, when it began, and by which code: it may be changed while it runs."""
    import mtplug

    return {
        "command": shlex.join(["mtplug-bench", *argv]),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "mtplug": mtplug.__version__,
        "commit": _commit(Path(mtplug.__file__).parents[1]),
    }


def _conditions() -> dict[str, object]:
    import torch

    from mtplug.training.run import processor

    return {
        "torch": version("torch"),
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _commit(source: Path) -> str:
    """Of the checkout that runs, with -dirty if files were changed since; not of a repository around an environment."""
    if not (source / ".git").exists():
        return "not a checkout"
    line = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, cwd=source)
    except FileNotFoundError:  # no git
        return "unknown"
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
