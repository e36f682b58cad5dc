"""A new run's weights from those of another (`training.init_from`), in full or in part."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.architectures.base import Model
from mtplug.architectures.vocabulary import Rows, rows_between, side_of, tables
from mtplug.config.build import load_resolved
from mtplug.config.schema import InitFromConfig
from mtplug.data.store import checksum
from mtplug.data.tokenizers import pieces_of
from mtplug.errors import UserError
from mtplug.files import finite, is_run, read_tensors
from mtplug.peft.base import ATTACHED
from mtplug.peft.files import WEIGHTS
from mtplug.training import checkpoints as ckpt
from mtplug.training.names import all_names, matching


def weights_file(path: str) -> Path:
    """The weights of a run (its best checkpoint), of a checkpoint's folder, or a file of safetensors.

    Raises:
        UserError: `path` is none of these.
    """
    found = Path(path)
    if (found / "checkpoints").is_dir():
        made = ckpt.Checkpoints(found / "checkpoints")
        best = (made.folder / "best" / "model.safetensors").is_file()
        found = made.find("best" if best else "last")
    file = found if found.is_file() else found / "model.safetensors"
    if (file.parent / WEIGHTS).is_file():
        raise UserError(
            f"training.init_from: {path} holds an adapter; first make one model of it and its base: "
            f"mtplug-peft merge {path} --output FOLDER"
        )
    if not file.is_file():
        raise UserError(
            f"training.init_from: {path} is no run, no folder of a checkpoint and no file of safetensors"
        )
    return file


class Base:
    """Weights that a run starts from, and the tokenizers of the run they come from, if there is one."""

    def __init__(self, path: str):
        self.file = weights_file(path)
        self.tokenizers: dict[str, Any] = {}
        run_dir = self.file.resolve().parent.parent.parent
        if is_run(run_dir) and (run_dir / "tokenizer").is_dir():
            run = load_resolved(run_dir / "config.yaml")
            task = run.task.build()
            task.load(run, run_dir)
            self.tokenizers = {"source": task.source_tokenizer, "target": task.target_tokenizer}


def initialise(model: Model, task: Any, sources: list[InitFromConfig]) -> list[dict[str, Any]]:
    """Copy what `sources` give into a model.

    A tensor is taken where name and shape are the same; a vocabulary's table also where only the
    vocabulary differs: see `rows_between`. A name that is not in the checkpoint is looked for under the
    other names of a tied tensor. `Model.table_pieces` tells of tables that have other rows than a tokenizer has ids.

    Returns:
        For each source what was taken, what was not and why, and what of it was left over.

    Raises:
        UserError: a path is wrong, a pattern fits nothing, nothing was taken, or a file is damaged.
    """
    own = all_names(model)
    counted = tables(model, len(task.source_tokenizer), len(task.target_tokenizer))
    tables_of_pieces = model.table_pieces(task.source_tokenizer)
    aliases: dict[int, list[str]] = {}
    for name, tensor in own.items():
        aliases.setdefault(id(tensor), []).append(name)
    records = []
    for source in sources:
        base = Base(source.path)
        tensors = finite(read_tensors(base.file), base.file)
        asked = check_patterns(model, source)
        taken, fresh = [], []
        for name in ckpt.weights(model):
            names = aliases[id(own[name])]
            entry: dict[str, Any] = {"name": name, "shape": list(own[name].shape)}
            if not asked & set(names):
                fresh.append({**entry, "why": "not asked for"})
                continue
            renamed = [_renamed(n, source.rename) for n in names]
            there = next((n for n in renamed if n in tensors), None)
            if there is None:
                fresh.append({**entry, "why": f"{renamed[0]} is not in the checkpoint"})
                continue
            pieces = tables_of_pieces.get(name)
            if pieces is not None and base.tokenizers:
                old = model.table_pieces(base.tokenizers["source"]).get(name, [])
                fits = len(old) == len(tensors[there])
                fits = fits and own[name].shape[1:] == tensors[there].shape[1:]
                rows = rows_between(pieces, old) if fits else None
            else:
                rows = _rows(counted.get(name), there, own[name], tensors[there], task, base)
            more = _take(own[name], tensors[there], there, counted.get(name), rows, base)
            if more is None:
                shape = tuple(tensors[there].shape)
                fresh.append({**entry, "why": f"{there} has the shape {shape}"})
            else:
                taken.append({**entry, **more, "from": there})
        used = {entry["from"] for entry in taken}
        _check_whole(source.path, tensors, used)
        left: list[dict[str, Any]] = [
            {"name": n, "shape": list(t.shape)} for n, t in tensors.items() if n not in used
        ]
        if not taken:
            raise UserError(
                f"training.init_from: nothing in {base.file} fits the model by name and shape: it holds "
                f"{_few([n['name'] for n in left])}, the model {_few([n['name'] for n in fresh])}; "
                f"training.init_from='{{path: {source.path}, rename: {{NAME.: OTHER.}}}}' maps one to the other"
            )
        file = {"file": str(base.file.resolve()), "sha256": checksum(base.file)}
        records.append({"path": source.path, **file, "taken": taken, "fresh": fresh, "left": left})
    return records


def _check_whole(path: str, tensors: dict[str, Tensor], used: set[str]) -> None:
    """What a PEFT method attached to a module has no place in a model without it, which would then do something else.

    Raises:
        UserError: weights of such a module are taken.
    """
    changed = {name[: m.start()] for name in tensors if (m := ATTACHED.search(name))}
    if any(name.startswith(f"{module}." if module else "") for name in used for module in changed):
        raise UserError(
            f"training.init_from: {path} holds an adapter beside its weights; first make one model of both: "
            f"mtplug-peft merge {path} --output FOLDER"
        )


def _take(
    own: Tensor, given: Tensor, there: str, side: str | None, rows: Rows | None, base: Base
) -> dict[str, Any] | None:
    """Copy what a base has under the name `there`; what else is to be told of it, or None where its shape is another."""
    if rows is None and own.shape != given.shape:
        return None
    ckpt.check_kind(own, given, f"training.init_from: {base.file}: {there}")
    with torch.no_grad():
        own.copy_(rows.taken(given, own) if rows else given)
    if rows:
        return {"vocabulary": {k: v for k, v in vars(rows).items() if k != "sources"}}
    if side and not base.tokenizers:
        return {"vocabulary": "no tokenizer beside the checkpoint: rows were taken by number"}
    return {}


def check_patterns(model: nn.Module, source: InitFromConfig) -> set[str]:
    """The names of the model that are asked for.

    Raises:
        UserError: a pattern, or a beginning that is to be renamed, fits none.
    """
    own = list(all_names(model))
    for mine in source.rename:
        if not any(name.startswith(mine) for name in own):
            raise UserError(
                f"training.init_from: rename: no tensor of the model begins with '{mine}'; it has {_few(own)}"
            )
    return set(matching(source.parameters, own, "training.init_from"))


def write(records: list[dict[str, Any]], run_dir: Path) -> None:
    """Keep with the run what it began from."""
    (run_dir / "initialisation.json").write_text(json.dumps(records, indent=1))


def told(records: list[dict[str, Any]]) -> list[str]:
    """The records as lines to read; tensors that differ in a number only stand in one line."""
    lines = []
    for record in records:
        taken, fresh = record["taken"], record["fresh"]
        sizes = [sum(torch.Size(e["shape"]).numel() for e in part) for part in (taken, fresh)]
        lines.append(
            f"init: {record['file']}: {len(taken)} of {len(taken) + len(fresh)} tensors, "
            f"{sizes[0]:,} of {sum(sizes):,} parameters"
        )
        lines += [f"init:   taken  {line}" for line in _grouped(taken)]
        for entry in taken:
            if isinstance(counts := entry.get("vocabulary"), dict):
                lines.append(
                    f"init:   {entry['name']}: {counts['shared']:,} rows of pieces that the base has, "
                    f"{counts['composed']:,} means of the pieces that make a new one, {counts['fresh']:,} "
                    f"fresh; {counts['dropped']:,} pieces of the base are not in this vocabulary"
                )
            elif counts:
                lines.append(f"init:   {entry['name']}: {counts}")
        lines += [f"init:   fresh  {line}" for line in _grouped(fresh)]
        lines += [f"init:   left   {line}" for line in _grouped(record["left"])]
    return lines


def _grouped(entries: list[dict[str, Any]]) -> list[str]:
    """`encoder.#.ffn.norm.bias (128) ×4`."""
    groups: Counter[tuple[str, ...]] = Counter()
    for entry in entries:
        texts = entry["name"], str(tuple(entry["shape"])), entry.get("why", "")
        groups[tuple(re.sub(r"(?<=\.)\d+(?=\.)", "#", text) for text in texts)] += 1
    lines = []
    for (name, shape, why), count in groups.items():
        many = f" ×{count}" if count > 1 else ""
        lines.append(f"{name} {shape}{many}" + (f": {why}" if why else ""))
    return lines


def _renamed(name: str, rename: dict[str, str]) -> str:
    for mine in sorted(rename, key=len, reverse=True):
        if name.startswith(mine):
            return rename[mine] + name[len(mine) :]
    return name


def _rows(
    side: str | None, there: str, own: Tensor, base_tensor: Tensor, task: Any, base: Base
) -> Rows | None:
    """How a vocabulary's table is taken over, or None if it is no table or the vocabularies are the same."""
    if side is None or own.shape[1:] != base_tensor.shape[1:]:
        return None
    old = base.tokenizers.get(side_of(there))
    if old is None or len(old) != len(base_tensor):
        return None
    return rows_between(pieces_of(getattr(task, f"{side}_tokenizer")), pieces_of(old))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
