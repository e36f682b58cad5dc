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
    from mtplug.tasks.base import Task
    from mtplug.translator import Translator

EPILOG = """\
examples:
  python -m mtplug_distill runs/teacher distilled search.beam=5
  mtplug-train student.yaml data.train.source=distilled/source data.train.target=distilled/target
  python -m mtplug_distill runs/teacher more --input monolingual.en
  python -m mtplug_distill runs/nllb en-sw --target-lang swh_Latn --source-lang eng_Latn"""


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
    made.add_argument(
        "--source-lang", default="", metavar="CODE",
        help="language of the text, where the model is told, as NLLB-200 is: of the training data, what is in it",
    )  # fmt: skip
    made.add_argument("--checkpoint", default="best", help="best, last, averaged or step-N")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument("--chunk", type=int, default=500, help="sentences between two saves")
    return common.run(made, body, argv)


def body(args: argparse.Namespace) -> int:
    common.configure(args)
    from mtplug.errors import UserError
    from mtplug.training.checkpoints import weights_file
    from mtplug.translator import load_run, translator_of

    if args.input and not args.input.is_file():
        raise UserError(f"--input {args.input}: no such file")
    if args.input and not (args.folder / "made_from.json").is_file():
        common.refuse_overwriting("FOLDER", args.folder / "source", [("--input", args.input)])
    run = load_run(args.run, args.overrides)
    teacher = translator_of(run, args.run, args.checkpoint, args.device)
    for side in ("target", "source"):
        setattr(teacher, f"{side}_lang", _code(teacher, side, getattr(args, f"{side}_lang")))
    if args.target_lang:
        teacher.task.address("?", args.target_lang)  # one that it does not write is told at once
    sources = _sources(args.input, run, teacher)
    for source in sources:  # what says no language is told before anything is written
        teacher.address(source)
    folders = [(args.run / "checkpoints" / name).resolve() for name in args.checkpoint.split(",")]
    digests = [_sha256(weights_file(folder).read_bytes()) for folder in folders]
    made_from = {
        "teacher": folders[0].name,
        "weights": digests[0],
        "settings": sorted(args.overrides),
        "sources": _sha256("\n".join(sources).encode()),
    }
    if digests[1:]:
        made_from["ensemble"] = digests[1:]
    if getattr(teacher.task, "tags", ()):
        made_from["languages"] = [teacher.target_lang, teacher.source_lang]
    _distill(teacher, sources, args.folder, made_from, args.chunk)
    print(f"{args.folder}: {len(sources):,} pairs; train a student with "
          f"data.train.source={args.folder / 'source'} data.train.target={args.folder / 'target'}")  # fmt: skip
    prefixes = [] if args.input else [c.config.prefix for c in run.data.train]
    if symbols := list(dict.fromkeys(" ".join(prefixes).split())):
        print(f"sources of some corpora begin with {' '.join(symbols)}: give a student that trains a tokenizer "
              f"tokenizer.user_symbols='{json.dumps(symbols)}'")  # fmt: skip
    return 0


def _code(teacher: Translator, side: str, name: str) -> str:
    """A language as the teacher's model calls it."""
    from mtplug.errors import UserError

    directions = getattr(teacher.task, "directions", None)
    if not name or directions is None:
        return name
    try:
        return directions.tokenizer.language(name)
    except UserError as error:
        raise UserError(f"--{side}-lang: {error}") from None


def _sources(path: Path | None, run: RunConfig, teacher: Translator) -> list[str]:
    """Text without tags and empty lines, except those that end documents where the teacher translates such."""
    from mtplug.evaluation.files import lines_of

    found = _training_texts(run, teacher) if path is None else lines_of(path)
    made = [one_line(s) for s in found]
    if teacher.task.window == 1:
        return [s for s in made if s]
    # One empty line ends a document, and none begins the text.
    return [s for before, s in zip(["", *made], made, strict=False) if s or before]


def _training_texts(run: RunConfig, teacher: Translator) -> list[str]:
    """Of the training data what is in the direction that the teacher is set to, or in the only one, to which it is set.

    Raises:
        UserError: nothing is, or what is has several directions.
    """
    from mtplug.errors import UserError

    task = teacher.task
    told = task.directions is not None  # which language it reads
    found: list[tuple[tuple[str, str] | None, str]] = []
    parts = zip(run.data.train, task.pairs(run, "train"), task.windows(run, "train"), strict=True)
    for chosen, (_, pairs), window in parts:
        usual = chosen.config.source_lang or getattr(run.task.config, "source_lang", "")
        for source, _ in pairs:
            found.append((_direction(task, source, usual), task.bare(source)))
            if window == 1:
                found.append((None, ""))
        found.append((None, ""))
    there = {way for way, _ in found if way}
    target, source = teacher.target_lang, teacher.source_lang
    fitting = {(a, b) for a, b in there if a == (source or a) and b == (target or b)}
    if not fitting:
        asked = " ".join(
            f"{word} {one}" for word, one in (("from", source), ("into", target)) if one
        )
        known = ", ".join(sorted("-".join(way) for way in there))
        raise UserError(f"the training data has none {asked}; it has {known}")
    sources, targets = (sorted(set(side)) for side in zip(*fitting, strict=True))
    if len(targets) > 1:
        raise UserError(
            f"--target-lang: the training data is in {' and '.join(targets)}, and a folder holds one language; choose "
            "one of them"
        )
    if told and len(sources) > 1:
        raise UserError(
            f"--source-lang: what is translated into {targets[0]} is in {' and '.join(sources)}, and a folder holds one "
            "language; choose one of them"
        )
    if task.tags:
        teacher.target_lang, teacher.source_lang = targets[0], sources[0] if told else ""
    return [text for way, text in found if way is None or way in fitting]


def _direction(task: Task, text: str, usual: str) -> tuple[str, str] | None:
    """(source, target) of a text of the training data, which is in `usual` unless its tag says what; None of an empty one."""
    if not text.strip():
        return None
    tag = text[: len(text) - len(task.bare(text))].strip()
    source = tag.removesuffix(">").partition(":")[2]
    return source or usual, task.written_lang(text)


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
    elif {
        **made_from,
        **json.loads(stamp.read_text()),
    } != made_from:  # earlier versions told no languages and no further checkpoints
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
