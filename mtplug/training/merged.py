"""Runs that were made and not trained: of a base and its adapters, which needs neither, or of what an exporter read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mtplug.architectures.base import Model
from mtplug.config.build import to_yaml
from mtplug.config.schema import RunConfig
from mtplug.data.tags import TAGS
from mtplug.files import read_environment, whole_folder
from mtplug.tasks.base import Task
from mtplug.training.checkpoints import Checkpoints


def write_run(
    run: RunConfig, base: Path, model: Model, output: Path, sources: list[str], task: Task
) -> None:
    """A run's folder that translates, evaluates and can be a base: configuration, tokenizer, one checkpoint.

    Args:
        run: whose other settings are kept.
        base: the folder of the run that the tokenizer is taken from.
        model: with merged weights.
        output: not there yet.
        sources: what it was made of, for the record.
        task: the base's, whose language tags stay where `run` was trained with fewer languages.
    """
    training = dataclasses.replace(run.training, finetune_from="")
    whole = dataclasses.replace(run, peft=None, training=training, run_dir=str(output))
    environment = {**read_environment(base), "merged": sources}
    plugins: dict[tuple[str, str], dict[str, Any]] = {}
    for record in [
        *environment.get("plugins", []),
        *read_environment(Path(run.run_dir)).get("plugins", []),
    ]:
        known = plugins.setdefault((record["distribution"], record["name"]), record)
        for kind, names in record.get("components", {}).items():
            mine = known.setdefault("components", {})
            mine[kind] = sorted({*mine.get(kind, []), *names})
    environment["plugins"] = list(plugins.values())
    with whole_folder(output) as folder:
        for part in (base / "tokenizer", base / "plugins", Path(run.run_dir) / "plugins"):
            if part.is_dir():
                shutil.copytree(part, folder / part.name, dirs_exist_ok=True)
        if task.tags and task.directions is None:
            (folder / "tokenizer" / TAGS).write_text(json.dumps(list(task.tags)))
        write_made(folder, whole, environment, "merged", model, sources=sources)


def write_made(
    folder: Path, run: RunConfig, environment: dict[str, Any], name: str, model: Model, **state: Any
) -> None:
    """What a run's folder has beside the tokenizer: configuration, environment, and one checkpoint, called `name`."""
    (folder / "config.yaml").write_text(to_yaml(run), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(name, model, {"update": 0, **state})
    for link in ("best", "last"):
        checkpoints.point(link, name)


def difference(model: Model, task: Any, change: Callable[[], Any]) -> float:
    """By how much logits of random sentences differ before and after `change`, at most."""
    generator = torch.Generator().manual_seed(1)
    device = next(model.parameters()).device

    def ids(tokenizer: Any) -> torch.Tensor:
        return torch.randint(3, len(tokenizer), (4, 12), generator=generator).to(device)

    source, target = ids(task.source_tokenizer), ids(task.target_tokenizer)
    lengths = torch.full((4,), 12, device=device)
    before = model.project(model(source, lengths, target))
    change()
    return float((model.project(model(source, lengths, target)) - before).abs().max())
