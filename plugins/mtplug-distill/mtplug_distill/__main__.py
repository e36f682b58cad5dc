"""python -m mtplug_distill: a teacher's beam translations as a training corpus.

Sequence-level knowledge distillation (Kim and Rush 2016, arXiv:1606.07947, section 3.2).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mtplug.cli import common
from mtplug.data.corpora import one_line

if TYPE_CHECKING:
    from mtplug.config.schema import RunConfig
    from mtplug.translator import Translator

EPILOG = """\
examples:
  python -m mtplug_distill runs/teacher distilled search.beam=5
  mtplug-train student.yaml data.train.source=distilled/source data.train.target=distilled/target
  python -m mtplug_distill runs/teacher more --input monolingual.en"""


def main(argv: list[str] | None = None) -> int:
    made = common.parser(
        "python -m mtplug_distill",
        "Translate a run's training data, or other text, into a corpus for a student. Stopped and "
        "called again, it goes on.",
        EPILOG,
    )
    made.add_argument("run", type=Path, help="the teacher's folder")
    made.add_argument("folder", type=Path, help="where `source` and `target` are written")
    made.add_argument("overrides", nargs="*", metavar="search.key=value", help="settings")
    made.add_argument("--input", type=Path, help="translate this text instead, one sentence a line")
    made.add_argument(
        "--target-lang", default="", metavar="CODE",
        help="language to write, of a run with task.language_tags: of the training data, what is in it",
    )  # fmt: skip
    made.add_argument("--checkpoint", default="best", help="best, last, averaged or step-N")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument("--chunk", type=int, default=500, help="sentences between two saves")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    from mtplug.errors import UserError
    from mtplug.translator import load_run, translator_of

    if args.input and not args.input.is_file():
        raise UserError(f"--input {args.input}: no such file")
    if args.input and not (args.folder / "made_from.json").is_file():
        common.refuse_overwriting("FOLDER", args.folder / "source", [("--input", args.input)])
    run = load_run(args.run, args.overrides)
    teacher = translator_of(run, args.run, args.checkpoint, args.device)
    if args.target_lang:
        teacher.task.address("?", args.target_lang)  # one that it does not write is told at once
        teacher.target_lang = args.target_lang
    sources = _sources(args.input, run, teacher)
    model = (args.run / "checkpoints" / args.checkpoint.split(",")[0]).resolve()
    made_from = {
        "teacher": model.name if model.is_dir() else args.checkpoint,
        "weights": _sha256((model / "model.safetensors").read_bytes()),
        "settings": sorted(args.overrides),
        "sources": _sha256("\n".join(sources).encode()),
    }
    _distill(teacher, sources, args.folder, made_from, args.chunk)
    print(f"{args.folder}: {len(sources):,} pairs; train a student with "
          f"data.train.source={args.folder / 'source'} data.train.target={args.folder / 'target'}")  # fmt: skip
    return 0


def _sources(path: Path | None, run: RunConfig, teacher: Translator) -> list[str]:
    """Text without tags and empty lines, except those that end documents where the teacher translates such."""
    from mtplug.errors import UserError
    from mtplug.evaluation.files import lines_of

    task, found = teacher.task, []
    if path is None:
        languages = task.target_langs(run, "train")
        if len(set(languages)) > 1 and not teacher.target_lang:
            raise UserError(
                f"--target-lang: the training data is in {' and '.join(sorted(set(languages)))}, and a folder holds one "
                "language; choose one of them"
            )
        corpora = zip(task.pairs(run, "train"), task.windows(run, "train"), languages, strict=True)
        for (_, pairs), window, language in corpora:
            for source, _ in pairs if language == (teacher.target_lang or language) else ():
                found += [task.bare(source)] if window > 1 else [task.bare(source), ""]
            found.append("")
    else:
        found = lines_of(path)
    made = [one_line(s) for s in found]
    if task.window == 1:
        return [s for s in made if s]
    # One empty line ends a document, and none begins the text.
    return [s for before, s in zip(["", *made], made, strict=False) if s or before]


def _distill(
    teacher: Translator, sources: list[str], folder: Path, made_from: dict, chunk: int
) -> None:
    """Write `source` and, when every sentence is translated, `target` to `folder`."""
    from mtplug.errors import UserError

    stamp, partial, target = (
        folder / "made_from.json",
        folder / ".target.partial",
        folder / "target",
    )
    folder.mkdir(parents=True, exist_ok=True)
    if not stamp.is_file():
        (folder / "source").write_text("".join(s + "\n" for s in sources), encoding="utf-8")
        partial.write_bytes(b"")
        stamp.write_text(json.dumps(made_from, indent=1))
    elif json.loads(stamp.read_text()) != made_from:
        raise UserError(
            f"{folder} was begun with another teacher, other settings or other text; choose "
            "another folder, or remove it"
        )
    if target.is_file():
        return
    whole = partial.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]  # a line that was being written is done again
    done = whole.count(b"\n")
    partial.write_bytes(whole)
    with partial.open("a", encoding="utf-8") as file:
        while done < len(sources):
            end = done + chunk
            if teacher.window > 1:  # behind a document, if one ends soon
                soon = range(min(end, len(sources)), min(end + chunk, len(sources)) + 1)
                end = next((n for n in soon if not sources[n - 1]), end)
            translated = teacher.translate(sources[done:end])
            file.write("".join(text + "\n" for text in translated))
            file.flush()
            done += len(translated)
            print(f"{done:,} of {len(sources):,} sentences", file=sys.stderr)
    os.replace(partial, target)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
