"""Adapters on disk, in the format of Hugging Face `peft`.

`adapter_model.safetensors` holds the trained tensors under the names they have there, `adapter_config.json` the
method's settings in its words; what only mtplug needs (our settings, the base's fingerprint) stands there
under `mtplug`.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtplug.config.build import component_from_plain
from mtplug.errors import UserError
from mtplug.files import finite, read_tensors
from mtplug.plugins import host
from mtplug.registry import Selected

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


def bare(name: str) -> str:
    """A parameter's name without the `peft` that marks what was attached."""
    return re.sub(r"(^peft\d*\.)|(\.peft\d*(?=\.|$))", "", name)


def named_as(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names that a model has for them; what it has no name for keeps its own."""
    names = {bare(name): name for name in own}
    return {name if name in own else names.get(name, name): t for name, t in tensors.items()}


def to_file(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Our tensors as the file holds them.

    Where modules share a table, `peft` has a change for each; ours is written once for each of them.
    """
    found = {PREFIX + bare(name): t for name, t in tensors.items()}
    for twin, first in config.get("mtplug", {}).get("twins", {}).items():
        found |= _twin(found, twin, first)
    return found


def from_file(
    tensors: dict[str, Tensor], config: dict[str, Any], where: Path, twins: dict[str, str]
) -> dict[str, Tensor]:
    """The inverse of `to_file`, with bare names.

    Args:
        twins: for a file that `peft` wrote: modules that share a table with another, by path. It has one
            change for those that are one module.

    Raises:
        UserError: a name lacks the prefix, or modules that share a table have different changes.
    """
    strange = [name for name in tensors if not name.startswith(PREFIX)]
    if strange:
        raise UserError(f"{where}: '{strange[0]}' does not begin with '{PREFIX}'")
    kept, ours = dict(tensors), config.get("mtplug")
    for twin, first in (twins if ours is None else ours.get("twins", {})).items():
        for name, tensor in _twin(tensors, twin, first).items():
            given = kept.pop(name, tensor if ours is None else None)
            if given is None or not torch.equal(given, tensor):
                raise UserError(
                    f"{where}: {twin} and {first} share one table, but the adapter changes them differently"
                )
    return {name.removeprefix(PREFIX): t for name, t in kept.items()}


def _twin(tensors: dict[str, Tensor], twin: str, first: str) -> dict[str, Tensor]:
    """The tensors that stand for a second module of a tied weight."""
    head = f"{PREFIX}{first}."
    found = {n.removeprefix(head): t for n, t in tensors.items() if n.startswith(head)}
    if "lora_embedding_A" in found:  # x @ B @ A of an output projection is a linear map's B' A' x
        found = {
            "lora_A.weight": found["lora_embedding_B"].T.contiguous(),
            "lora_B.weight": found["lora_embedding_A"].T.contiguous(),
        }
    return {f"{PREFIX}{twin}.{name}": t.clone() for name, t in found.items()}


def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of a folder.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("peft_type"), str):
        raise UserError(f"{folder / CONFIG}: no peft_type, so this describes no adapter")
    if not isinstance(found.get("mtplug", {}), dict):
        raise UserError(f"{folder / CONFIG}: mtplug is no mapping, so this describes no adapter")
    return found


def read(folder: Path, model: Any = None) -> dict[str, Tensor]:
    """The tensors of an adapter, with bare names.

    Args:
        model: that it is for, with the adapter's method applied.

    Raises:
        UserError: a file is missing or damaged, or a value is NaN or infinite.
    """
    config, file = read_config(folder), folder / WEIGHTS
    twins = model.adapter_config["mtplug"]["twins"] if model is not None else {}
    return from_file(finite(read_tensors(file), file), config, file, twins)


def method_of(config: dict[str, Any], where: Path) -> Selected:
    """The method, with its settings, that an adapter was made with.

    Raises:
        UserError: no plugin here has it.
    """
    if settings := config.get("mtplug", {}).get("method"):
        return component_from_plain("peft_methods", settings)
    for name in host().names("peft_methods"):
        factory: Any = host().component("peft_methods", name).factory
        if getattr(factory, "peft_type", None) == config["peft_type"]:
            return component_from_plain("peft_methods", {"name": name, **factory.settings(config)})
    raise UserError(f"{where}: no method here reads adapters of type {config['peft_type']}")


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bits: that of a base does not depend on how it was stored."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        whole.update(tensor.flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()
