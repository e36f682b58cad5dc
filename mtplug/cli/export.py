"""mtplug-export: a trained model in another format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mtplug.cli import common

EPILOG = """\
examples:
  mtplug-export runs/demo --format ctranslate2 --quantization int8 --output demo-ct2
  mtplug-export runs/demo --format marian --output demo-marian
  mtplug-plugins list    # which formats there are: exporters"""


def main(argv: list[str] | None = None) -> int:
    made = common.parser("mtplug-export", "Write a trained model in another format.", EPILOG)
    made.add_argument("run", type=Path, help="the run's folder")
    made.add_argument("settings", nargs="*", metavar="key=value", help="settings of the format")
    made.add_argument("--format", required=True, metavar="NAME", help="an exporter of a plugin")
    made.add_argument("--output", type=Path, help="folder; default: exports/NAME in the run's")
    made.add_argument("--checkpoint", default="best", help="best, last, averaged or step-N")
    made.add_argument("--quantization", help="the same as quantization=…, such as int8")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    from mtplug.errors import UserError
    from mtplug.exporting import build_exporter, reason_against
    from mtplug.translator import load

    if args.quantization is not None:
        args.settings.append(f"quantization={args.quantization}")
    # An exporter may clear the folder that it is given.
    if args.output and args.run.resolve().is_relative_to(args.output.resolve()):
        raise UserError(f"--output {args.output}: the run is in that folder; choose another")
    _, exporter = build_exporter(args.format, args.settings, "--format")
    translator = load(args.run, args.checkpoint, "cpu")
    reason = reason_against(exporter, translator.model, translator.task)
    if reason:
        raise UserError(f"--format {args.format}: {reason}")
    path = args.output or args.run / "exports" / args.format
    path.parent.mkdir(parents=True, exist_ok=True)
    exporter.export(translator, path)
    print(f"{path}: {args.checkpoint} of {args.run} as {args.format}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
