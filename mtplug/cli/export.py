"""mtplug-export: a trained model in another format."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import mtplug
from mtplug.cli import common
from mtplug.errors import UserError

RECORD = "mtplug_export.json"
"""In a folder that was exported: of what, with which settings."""

EPILOG = """\
examples:
  mtplug-export runs/demo --format ctranslate2 --quantization int8 --output demo-ct2
  mtplug-export runs/demo --format marian --output demo-marian
  mtplug-plugins list    # exporters: which formats there are, for mtplug-import too"""


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
    from mtplug.config import to_plain
    from mtplug.exporting import build_exporter, reason_against
    from mtplug.training.checkpoints import Checkpoints
    from mtplug.translator import load

    if args.quantization is not None:
        args.settings.append(f"quantization={args.quantization}")
    if args.output:
        _refuse_other_content(args.output)
    selected, exporter = build_exporter(args.format, args.settings, "--format")
    translator = load(args.run, args.checkpoint, "cpu")
    reason = reason_against(exporter, translator.model, translator.task)
    if reason:
        raise UserError(f"--format {args.format}: {reason}")
    path = args.output or args.run / "exports" / args.format
    checkpoint = Checkpoints(args.run / "checkpoints").find(args.checkpoint).name
    path.parent.mkdir(parents=True, exist_ok=True)
    exporter.export(translator, path)
    if path.is_dir():
        record = {"run": str(args.run.resolve()), "checkpoint": checkpoint, "format": args.format,
                  "settings": to_plain(selected.config), "mtplug": mtplug.__version__}  # fmt: skip
        (path / RECORD).write_text(json.dumps(record, indent=1))
    print(f"{path}: {args.checkpoint} of {args.run} as {args.format}")
    return 0


def _refuse_other_content(path: Path) -> None:
    """Exporters may clear the folder that they are given, so it must be new, empty, or an export's.

    Raises:
        UserError: it is something else.
    """
    if path.is_dir() and any(path.iterdir()) and not (path / RECORD).is_file():
        raise UserError(f"--output {path}: that folder is no export; choose another, or remove it")


if __name__ == "__main__":
    sys.exit(main())
