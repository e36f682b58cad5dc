"""mtplug-peft: merge adapters into their base, and make weighted sums of them."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from mtplug.cli import common
from mtplug.errors import UserError

EPILOG = """\
examples:
  mtplug-peft merge runs/legal --output runs/legal-merged
  mtplug-peft merge some/adapter --base runs/base --output runs/merged
  mtplug-peft combine runs/legal=0.7 runs/medical=0.3 --output adapters/both

An adapter is a run that was trained with peft and training.finetune_from, one of its checkpoints, or a
folder with adapter_model.safetensors and adapter_config.json, such as Hugging Face peft writes. merge also
takes a run that was trained with peft and no base, whose checkpoints hold all weights."""


def main(argv: list[str] | None = None) -> int:
    made = common.Parser(
        prog="mtplug-peft",
        description="Merge adapters into their base, or combine them.",
        epilog=EPILOG,
    )
    commands = made.add_subparsers(dest="command", required=True)
    merging = commands.add_parser(
        "merge", help="a run with the adapter merged into the base's weights"
    )
    merging.add_argument("adapters", nargs="+", help="one, or several that are stacked")
    combining = commands.add_parser("combine", help="a weighted sum of adapters as a new adapter")
    combining.add_argument("adapters", nargs="+", metavar="PATH=WEIGHT")
    for command in (merging, combining):
        command.add_argument("--output", type=Path, required=True, help="a new folder")
        command.add_argument(
            "--base", help="the base's run or checkpoint; default: what the first adapter names"
        )
        common.add_common(command)
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)

    if args.output.exists():
        raise UserError(f"--output {args.output}: is there already; choose a new folder")
    return merged(args) if args.command == "merge" else combined(args)


def base_of(args: argparse.Namespace, folder: Path) -> tuple[Path, Any]:
    """The base's folder, and a translator of it."""
    from mtplug.peft.files import read_config
    from mtplug.training.finetune import base_checkpoint
    from mtplug.translator import load_run, translator_of

    named = args.base or read_config(folder).get("base_model_name_or_path") or ""
    try:
        run_dir, checkpoint = base_checkpoint(named)
    except UserError:
        raise UserError(
            f"the base '{named}' of {folder} is no run here; give it with --base"
        ) from None
    translator = translator_of(load_run(run_dir), run_dir, checkpoint, "cpu")
    # Where the base is an adapter's run itself, all of its weights are the base's.
    translator.model.base_names = frozenset()
    return run_dir, translator


def is_whole(path: str) -> bool:
    """Whether a path leads to a run with a method and no base: its checkpoints hold the weights that are adapted, too."""
    from mtplug.config.base import base_folder
    from mtplug.translator import load_run

    folder = base_folder(Path(path))
    run = load_run(folder) if folder else None
    return run is not None and run.peft is not None and not run.training.finetune_from


def merged(args: argparse.Namespace) -> int:
    import torch

    from mtplug.adapters import check_settings, folder_of, with_adapters
    from mtplug.config.base import base_folder
    from mtplug.peft.combine import merge
    from mtplug.training.finetune import base_checkpoint
    from mtplug.training.merged import difference, write_run
    from mtplug.translator import load_run, translator_of

    if len(args.adapters) == 1 and not args.base and is_whole(args.adapters[0]):
        sources = args.adapters
        run_dir, checkpoint = base_checkpoint(sources[0])
        run = load_run(run_dir)
        translator = translator_of(run, run_dir, checkpoint, "cpu")
        model = translator.model
        told = f"what {run_dir} trained merged into its weights"
    else:
        folders = [folder_of(path) for path in args.adapters]
        run_dir, translator = base_of(args, folders[0])
        # Where an adapter is no run's, only its base is known.
        home = base_folder(folders[0]) or run_dir
        run = load_run(home)
        check_settings(run, home, folders[1:])
        model = with_adapters(translator.model, folders, run_dir)
        sources = [str(folder) for folder in folders]
        told = f"{run_dir} with {', '.join(args.adapters)} merged in"
    with torch.no_grad():
        apart = difference(model, translator.task, lambda: merge(model))
    write_run(run, run_dir, model, args.output, sources, translator.task)
    print(f"{args.output}: {told}; logits of random sentences differ by at most {apart:.1e}")
    return 0


def combined(args: argparse.Namespace) -> int:
    from mtplug.adapters import folder_of
    from mtplug.files import save_tensors, whole_folder
    from mtplug.peft import files
    from mtplug.peft.combine import weighted_sum
    from mtplug.training.checkpoints import weights

    paths, factors = [], []
    for text in args.adapters:
        path, equals, factor = text.rpartition("=")
        try:
            factors.append(float(factor))
        except ValueError:
            equals = ""
        if not equals or not math.isfinite(factors[-1]):
            raise UserError(f"'{text}': expected PATH=WEIGHT, such as {path or text}=0.5")
        paths.append(folder_of(path))
    _, translator = base_of(args, paths[0])
    tensors, described = weighted_sum(paths, factors, weights(translator.model))
    with whole_folder(args.output) as folder:
        save_tensors(files.to_file(tensors, described), folder / files.WEIGHTS, {"format": "pt"})
        (folder / files.CONFIG).write_text(json.dumps(described, indent=1))
    print(
        f"{args.output}: sum of {', '.join(f'{f:g} · {p}' for f, p in zip(factors, paths, strict=True))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
