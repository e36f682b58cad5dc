"""A tokenizer taken over from another run, so that two models have one vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mtplug.config.build import load_resolved, to_plain
from mtplug.config.schema import RunConfig
from mtplug.data.store import checksum
from mtplug.data.tags import TAGS
from mtplug.errors import UserError
from mtplug.files import is_run, whole_folder


def adopt_tokenizer(
    run: RunConfig, given: Path, folder: Path, setting: str, tags: tuple[str, ...] = ()
) -> None:
    """Copy the tokenizer of run `given` to `folder`, unless it is there or `given` is gone by now.

    Args:
        run: the configuration of the run that takes it over.
        given: another run's folder.
        folder: the tokenizer's place in the run that takes it over.
        setting: what names `given`, for messages.
        tags: languages of its tags, which take ids too; written beside it.

    Raises:
        UserError: `given` is no run with a tokenizer, or its settings are others.
    """
    theirs = given / "tokenizer"
    if not (is_run(given) and theirs.is_dir()):
        if folder.is_dir():
            return
        raise UserError(f"{setting}: {given} holds no tokenizer; give the folder of a run")
    told, wanted = to_plain(load_resolved(given / "config.yaml").tokenizer), to_plain(run.tokenizer)
    for key in sorted({*told, *wanted}):
        if told.get(key) != wanted.get(key):
            raise UserError(
                f"tokenizer.{key}: {wanted.get(key)} here, {told.get(key)} in {given}, whose "
                f"tokenizer {setting} takes over; they must be the same"
            )
    if _sums(folder) == _sums(theirs):
        return
    with whole_folder(folder, replace=True) as made:
        shutil.copytree(theirs, made, dirs_exist_ok=True)
        if tags:
            (made / TAGS).write_text(json.dumps(tags))


def _sums(folder: Path) -> dict[str, str]:
    files = [f for f in folder.iterdir() if f.name != TAGS] if folder.is_dir() else []
    return {f.name: checksum(f) for f in files}
