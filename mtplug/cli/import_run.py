"""mtplug-import: a run made of a model in another format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mtplug.cli import common
from mtplug.errors import UserError

EPILOG = """\
examples:
  mtplug-import marian opus-mt-de-en --output runs/opus-mt-de-en
  mtplug-import fairseq checkpoint_best.pt data=data-bin source_subwords=codes --output runs/old
  echo "Ein Hund rennt." | mtplug-translate runs/opus-mt-de-en"""


def main(argv: list[str] | None = None) -> int:
    made = common.parser("mtplug-import", "Make a run of a model in another format.", EPILOG)
    made.add_argument("format", metavar="FORMAT", help="an exporter of a plugin that also reads")
    made.add_argument("source", type=Path, help="the model's folder or file")
    made.add_argument("settings", nargs="*", metavar="key=value", help="settings of the format")
    made.add_argument("--output", type=Path, required=True, metavar="RUN", help="the run's folder")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    from mtplug.exporting import build_exporter, write_run
    from mtplug.exporting.base import read_model

    _, exporter = build_exporter(args.format, args.settings, "format", "read")
    if not args.source.exists():
        raise UserError(f"{args.source}: no such file or folder{_of_the_hub(args.source)}")
    write_run(read_model(exporter, args.format, args.source), args.output)
    print(f"{args.output}: {args.source}, read as {args.format}")
    return 0


def _of_the_hub(source: Path) -> str:
    """What may have been meant: the name of a model on Hugging Face's hub."""
    if len(source.parts) != 2 or source.is_absolute() or source.parent.exists():
        return ""
    return (
        "; a model of Hugging Face's hub is downloaded first, by: "
        f"hf download {source} --local-dir {source.name}"
    )


if __name__ == "__main__":
    sys.exit(main())
