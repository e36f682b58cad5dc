"""Engines for `mtplug-translate --backend`: a model is exported on first use, and found again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mtplug.config.build import to_plain
from mtplug.config.schema import RunConfig
from mtplug.errors import UserError
from mtplug.exporting.base import Engine, build_exporter, reason_against
from mtplug.inspection import cache_dir
from mtplug.peft.files import fingerprint
from mtplug.plugins import host
from mtplug.training.checkpoints import weights

if TYPE_CHECKING:
    from mtplug.translator import Translator


def engine_of(
    translator: Translator,
    run: RunConfig,
    run_dir: Path,
    checkpoint: str,
    device: str,
    name: str,
    settings: Iterable[str] = (),
) -> Engine:
    """The engine of exporter `name` for one of a run's checkpoints.

    The export lies in the run's `exports/`, or in the user's cache where that cannot be written. Its
    folder is named after a digest of weights, settings and plugin version, so it never goes stale.

    Raises:
        UserError: there is no such engine, or it cannot take this model.
    """
    selected, exporter = build_exporter(name, list(settings), "--backend", "engine")
    if "," in checkpoint:
        raise UserError(f"--backend {name}: one checkpoint at a time, not {checkpoint}")
    reason = reason_against(exporter, translator.model, translator.task)
    if reason:
        raise UserError(f"--backend {name}: {reason}")
    made_from = {
        "weights": fingerprint(weights(translator.model)),
        "architecture": to_plain(run.architecture),
        "exporter": to_plain(selected),
        "plugin": host().provider(selected.component),
    }
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    places = [run_dir / "exports", cache_dir() / "exports"]
    path = next((p for base in places if (p := base / f"{name}-{key}").is_dir()), None)
    if path is None:
        path = _write(places, f"{name}-{key}", lambda to: exporter.export(translator, to))
    return exporter.engine(path, device)


def _write(places: list[Path], name: str, export: Callable[[Path], None]) -> Path:
    """Export into the first place that can be written, whole or not at all."""
    for base in places:
        aside = base / f".{name}.{os.getpid()}"
        try:
            aside.mkdir(parents=True)
        except OSError as error:
            refused = error
            continue
        try:
            export(aside)
            if not (base / name).is_dir():  # another process may have been faster
                aside.rename(base / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return base / name
    raise UserError(f"no place for the exported model: {refused}")
