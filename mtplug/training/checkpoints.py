"""Checkpoints on disk: they appear whole or not at all, and load without executing pickled code.

A checkpoint is a folder `step-00001000`: `model.safetensors` (weights, tied ones once), `training.safetensors`
(optimizer state and random number generators), `state.json` (everything else, with the format's version).
`best` and `last` are links beside it. One that fine-tunes a base by a PEFT method has an adapter instead of
`model.safetensors`: see `mtplug.peft.files`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mtplug.errors import MtplugError, UserError
from mtplug.files import (
    damaged,
    finite,
    flush_to_disk,
    is_run,
    read_json,
    read_tensors,
    save_tensors,
)
from mtplug.lifecycle import first_line
from mtplug.peft import files

VERSION = 1
Needed = dict[str, type | UnionType]

# From each older version of `state.json` a function to the next one.
UPGRADERS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each storage once; those of a base are left out."""
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=True))
    kept = set(model.state_dict())
    named.update({n: b for n, b in model.named_buffers() if n in kept})
    of_base = getattr(model, "base_names", ())
    return {name: tensor.detach() for name, tensor in named.items() if name not in of_base}


class Checkpoints:
    """The checkpoints of one run, below `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder

    # --- writing ------------------------------------------------------------------------------

    def save(
        self,
        name: str,
        model: nn.Module | dict[str, Tensor],
        state: dict[str, Any],
        tensors: dict[str, Tensor] | None = None,
        adapter: dict[str, Any] | None = None,
    ) -> Path:
        """Write a checkpoint aside, flush it to disk, and only then give it its name.

        Args:
            name: of the checkpoint.
            model: or its weights.
            state: for `state.json`.
            tensors: of the optimizer and the like.
            adapter: if the weights are only an adapter, its description.

        Raises:
            MtplugError: the disk is full or fails; nothing of the new checkpoint is left and
                earlier ones are untouched.
        """
        # Each process its own, of which several may average to one name at once.
        path, aside = self.folder / name, self.folder / f".{name}.{os.getpid()}.partial"
        model = weights(model) if isinstance(model, nn.Module) else model
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            if adapter is None:
                save_tensors(_portable(model), aside / "model.safetensors")
            else:
                tensors_of_file = _portable(files.to_file(model, adapter))
                save_tensors(tensors_of_file, aside / files.WEIGHTS, {"format": "pt"})
                (aside / files.CONFIG).write_text(json.dumps(adapter, indent=1))
            if tensors is not None:
                save_tensors(_portable(tensors), aside / "training.safetensors")
            text = json.dumps({"version": VERSION, **state}, indent=1)
            (aside / "state.json").write_text(text)
            for file in aside.iterdir():
                flush_to_disk(file)
            flush_to_disk(aside)
            old = self.folder / f".{name}.removed"
            if path.exists():
                path.rename(old)  # never half of it under its name
            aside.rename(path)
            flush_to_disk(self.folder)
            shutil.rmtree(old, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            why = "the disk is full" if full else str(error)
            then = "free some space and run" if full else "when that is mended, run"
            raise MtplugError(
                f"{path} could not be written: {why}; earlier checkpoints are untouched, {then} "
                "the same command again"
            ) from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return path

    def point(self, link: str, name: str) -> None:
        """Let `best` or `last` lead to a checkpoint."""
        aside = self.folder / f".{link}.partial"
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        try:
            os.symlink(name, aside)
        except OSError as error:
            raise MtplugError(
                f"{self.folder}: {error.strerror}: best and last are symbolic links, which this file system does "
                "not support; choose a run_dir on another"
            ) from None
        os.replace(aside, self.folder / link)

    def prune(self, keep: set[str]) -> None:
        """Remove all steps but those in `keep` and those that links lead to."""
        keep = keep | {os.readlink(p) for p in self.folder.iterdir() if p.is_symlink()}
        for path in self.steps():
            if path.name not in keep:
                # Renamed first, so that a half-removed checkpoint never has a checkpoint's name.
                _remove(path.rename(self.folder / f".{path.name}.removed"))

    def clean(self) -> None:
        """Remove what an interrupted process left behind, and make links of what a copy made of them."""
        for link in ("best", "last"):
            copy = self.folder / link
            if not copy.is_dir() or copy.is_symlink():
                continue
            told = (copy / "state.json").read_bytes()
            own = [p for p in (*self.steps(), self.folder / "averaged") if p.is_dir()]
            same = [p.name for p in own if (p / "state.json").read_bytes() == told]
            if same:
                copy.rename(self.folder / f".{link}.removed")
                self.point(link, same[0])
        for kind in ("partial", "removed"):  # other hidden files are not ours
            for path in self.folder.glob(f".*.{kind}"):
                _remove(path)

    # --- reading ------------------------------------------------------------------------------

    def steps(self) -> list[Path]:
        """All checkpoints of updates, oldest first."""
        return sorted(p for p in self.folder.glob("step-[0-9]*") if p.is_dir())

    def scheduled(self) -> list[Path]:
        """Those that the run has whenever it is interrupted, oldest first.

        Raises:
            UserError: one is damaged.
        """
        return [path for path in self.steps() if read_state(path).get("scheduled", True)]

    def find(self, name: str) -> Path:
        """The folder of best, last, averaged or step-N; N may be without its zeros.

        Raises:
            UserError: there is no such checkpoint.
        """
        path = self.folder / name
        if re.fullmatch(r"step-\d+", name) and not path.is_dir():
            path = self.folder / step_name(int(name[5:]))
        if not weights_file(path).is_file():
            there = (
                sorted(p.name for p in self.folder.glob("[!.]*")) if self.folder.is_dir() else []
            )
            raise UserError(
                f"{self.folder} has no checkpoint '{name}'; "
                + (f"there: {', '.join(there)}" if there else "nothing was saved yet")
            )
        return path.resolve()

    def load_model(self, name: str, model: nn.Module) -> Path:
        """Fill a model with a checkpoint's weights.

        Raises:
            UserError: the checkpoint is missing or damaged, written by a newer mtplug, or holds other names or
                shapes.
        """
        path = self.find(name)
        if (path / "state.json").is_file():
            read_state(path)
        if (path / files.WEIGHTS).is_file():
            check_base(model, path)
        load_weights(model, read_weights(path), path)
        return path

    def read(
        self, path: Path, needed: Needed | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        """(state, model tensors, training tensors) of a checkpoint.

        Args:
            needed: see `read_state`.

        Raises:
            UserError: it is damaged, or written by a newer mtplug.
        """
        state, file = read_state(path, needed), path / "training.safetensors"
        return state, read_weights(path), read_tensors(file, _advice(path))


def step_name(update: int) -> str:
    """The name of an update's checkpoint."""
    return f"step-{update:08d}"


def read_state(path: Path, needed: Needed | None = None) -> dict[str, Any]:
    """`state.json` of a checkpoint, brought up to this version.

    Args:
        needed: what it must hold, and of which type.

    Raises:
        UserError: it is damaged, or written by a newer mtplug.
        OSError: it is missing, or may not be read.
    """
    file = path / "state.json"
    state = read_json(file, _advice(path))
    numbers = state.get("version"), state.get("update", 0)
    if not all(isinstance(number, int) for number in numbers):
        raise damaged(file, "version or update is no whole number", _advice(path))
    while (version := state["version"]) != VERSION:
        if version not in UPGRADERS:
            raise UserError(
                f"{path} is of format {version}, this mtplug reads up to {VERSION}; "
                "install a newer mtplug"
            )
        state = UPGRADERS[version](state)
    for key, kind in (needed or {}).items():
        if key not in state:
            raise damaged(file, f"it has no {key}", _advice(path))
        if not isinstance(state[key], kind):
            raise damaged(file, f"{key} is {state[key]!r:.20}", _advice(path))
    return state


@contextlib.contextmanager
def taking_up(path: Path) -> Iterator[None]:
    """What was read of a checkpoint's state is put to use; raises `UserError` where something in it is of another type."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise damaged(path / "state.json", first_line(error), _advice(path)) from error


def weights_file(path: Path) -> Path:
    """Where a checkpoint's weights are."""
    adapter = path / files.WEIGHTS
    return adapter if adapter.is_file() else path / "model.safetensors"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's model, or of its adapter.

    Raises:
        UserError: the file is missing or damaged, or a value is NaN or infinite.
    """
    file = weights_file(path)
    tensors = finite(read_tensors(file, _advice(path)), file, _advice(path))
    if file.name == files.WEIGHTS:
        return files.from_file(tensors, files.read_config(path), file, {})
    return tensors


def adapter_of(path: Path) -> dict[str, Any] | None:
    """The description of a checkpoint's adapter, if it holds one."""
    return files.read_config(path) if (path / files.WEIGHTS).is_file() else None


def check_base(model: nn.Module, folder: Path) -> None:
    """The adapter in `folder` must have been made on the model's base.

    Raises:
        UserError: it was made on another one.
    """
    own: Any = getattr(model, "adapter_config", None)
    if own is None:
        raise UserError(
            f"{folder} holds an adapter, and this run has no base; set training.finetune_from"
        )
    given = files.read_config(folder)
    theirs, mine = given.get("mtplug", {}).get("base"), own["mtplug"]["base"]
    if theirs is not None and theirs != mine:
        raise UserError(
            f"{folder} was made on another base than {own['base_model_name_or_path']}: fingerprint "
            f"{theirs[:12]} of {given.get('base_model_name_or_path')}, not {mine[:12]}"
        )


def load_weights(model: nn.Module, tensors: dict[str, Tensor], where: Path | str) -> None:
    """Copy tensors into a model, all of them and nothing else.

    Raises:
        UserError: names or shapes differ, or a tensor is of another kind of numbers.
    """
    own = weights(model)
    tensors = files.named_as(own, tensors)
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        raise UserError(
            f"{where} does not fit the architecture: "
            + "; ".join(
                f"{what}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
                for what, names in (("missing", missing), ("not in the model", extra))
                if names
            )
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise UserError(
                f"{where}: {name} has shape {tuple(tensors[name].shape)}, the architecture "
                f"wants {tuple(tensor.shape)}"
            )
        check_kind(tensor, tensors[name], f"{where}: {name}")
        with torch.no_grad():
            tensor.copy_(like(tensors[name], tensor))


def check_kind(own: Tensor, given: Tensor, what: str) -> None:
    """Floating-point numbers are given for such, and for others not: a copy casts whatever it is given.

    Raises:
        UserError: `what` holds others.
    """
    if own.is_floating_point() != given.is_floating_point():
        raise UserError(f"{what} is of type {given.dtype}, the architecture wants {own.dtype}")


def like(whole: Tensor, own: Tensor) -> Tensor:
    """`whole` on the device of `own`, and cut up as that is where processes share it."""
    if hasattr(own, "device_mesh"):
        # Imported where it is used: it takes most of a second.
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(own, DTensor)
        return distribute_tensor(whole.to(own.device), own.device_mesh, own.placements)
    return whole.to(own.device)


def average(paths: list[Path]) -> dict[str, Tensor]:
    """The mean of the weights of several checkpoints, summed in float64.

    Raises:
        UserError: there are none, one is damaged, or their names, shapes or kinds of numbers differ.
    """
    if not paths:
        raise UserError("no checkpoint to average")
    total: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    first: dict[str, Any] = {}
    for path in paths:
        tensors = read_weights(path)
        form = {n: (t.shape, t.is_floating_point()) for n, t in tensors.items()}
        first = first or form
        if form != first:
            raise UserError(f"{path} holds another model than {paths[0]}")
        for name, tensor in tensors.items():
            dtypes[name] = tensor.dtype
            wide = tensor.to(torch.promote_types(tensor.dtype, torch.float64))
            total[name] = total[name] + wide if name in total else wide
    return {name: (tensor / len(paths)).to(dtypes[name]) for name, tensor in total.items()}


def flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An optimizer's `state_dict` as JSON and tensors."""
    tensors, plain = {}, {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                plain[f"{index}.{key}"] = value
    return {"param_groups": state["param_groups"], "values": plain}, tensors


def unflatten_optimizer(plain: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The inverse of `flatten_optimizer`."""
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    for name, value in plain["values"].items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": plain["param_groups"]}


def _portable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _remove(path: Path) -> None:
    """Whatever it is; of a link not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _advice(path: Path) -> str:
    """What to do about a damaged checkpoint: only what a run can do without is to be removed."""
    folder, advice = path.resolve(), "choose another checkpoint (to translate: --checkpoint)"
    ours = folder.parent.name == "checkpoints" and is_run(folder.parent.parent)
    if ours and re.fullmatch(r"step-\d+|averaged", folder.name):
        advice += f", or remove {folder} to go on without it"
    return advice
