"""Folders that Hugging Face's transformers writes: settings in JSON, weights in one file or in several."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mtplug.errors import UserError
from mtplug.files import read_json, read_pickled, read_tensors, save_tensors

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".ot")
"""Of weights in any of the formats that a folder may have beside each other."""


def read_settings(file: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a JSON file of such a folder holds; `default`, if there is one, where it is missing.

    Raises:
        UserError: it is missing or damaged.
    """
    if not file.is_file() and default is not None:
        return default
    if not file.exists():
        raise UserError(f"{file} is missing; give the model's folder, with all files as published")
    try:
        return read_json(file, "get it again")
    except OSError as error:
        raise UserError(f"{file} is no part of such a model: {error}") from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a model in fp32, by their names; pickled code is not run.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            parts = [name]
        elif index.is_file():
            parts = sorted(set(read_settings(index).get("weight_map", {}).values()))
        else:
            continue
        found: dict[str, Tensor] = {}
        for part in parts:
            read = read_tensors if Path(part).suffix == ".safetensors" else read_pickled
            found |= read(folder / part)
        return {name: tensor.float() for name, tensor in found.items()}
    raise UserError(f"{folder} has neither {' nor '.join(WEIGHTS)}")


def taken(theirs: dict[str, Tensor], name: str, folder: Path) -> Tensor:
    """A weight of those that were read of a folder, which then are without it.

    Raises:
        UserError: there is none of that name.
    """
    if name not in theirs:
        raise UserError(f"{folder}: its weights have no {name}")
    return theirs.pop(name)


class LikeExporter(ABC):
    """Writes a model that was read from a folder: its weights, and all other files as they are in that folder.

    Args:
        config: with `like`, the folder.

    Attributes:
        name: of the exporter, for messages.
        architecture: the models that it takes.
        kept: settings of the architecture that must be those of the folder's model.
    """

    name: str
    architecture: type[nn.Module]
    kept: tuple[str, ...]

    def __init__(self, config: Any):
        self.config = config

    @abstractmethod
    def settings(self, config: dict[str, Any], where: Path) -> dict[str, Any]:
        """Our settings of the architecture for those in config.json; raises `UserError` if it is one that ours cannot be."""

    @abstractmethod
    def tensors(
        self,
        weights: dict[str, Tensor],
        settings: dict[str, Any],
        config: dict[str, Any],
        like: Path,
    ) -> dict[str, Tensor]:
        """Weights of ours, by all names of a state, as that format has them.

        Args:
            settings: what `settings` gives.
            config: what config.json of the folder `like` holds.
        """

    def size(self, config: dict[str, Any]) -> int | None:
        """How many ids ours has of a model with such a config.json."""
        return config.get("vocab_size")

    def why_not(self, model: nn.Module, task: Any) -> str:
        """What keeps a model from being written; empty if nothing does."""
        if type(model) is not self.architecture:
            return f"the format takes what was read from it only, not {type(model).__name__}"
        if not self.config.like:
            return "like=FOLDER is missing: the folder that the model was read from"
        return ""

    def export(self, translator: Any, path: Path) -> None:
        """Write the weights, and beside them all other files of `like`.

        Raises:
            UserError: `like` holds another model.
        """
        model, like = translator.model, Path(self.config.like)
        if reason := self.why_not(model, translator.task):
            raise UserError(f"exporter {self.name}: {reason}")
        config = read_settings(like / "config.json")
        settings = self.settings(config, like)
        parts = [(key, settings[key], getattr(model.config, key)) for key in self.kept]
        parts.append(("vocab_size", self.size(config), len(translator.task.target_tokenizer)))
        for key, there, here in parts:
            if there != here:
                raise UserError(
                    f"exporter {self.name}: {like} is of another model: {key} is {there} there, {here} here"
                )
        weights = {k: v.detach().float().cpu() for k, v in model.state_dict().items()}
        tensors = self.tensors(weights, settings, config, like)
        path.mkdir(parents=True, exist_ok=True)
        for file in sorted(like.iterdir()):
            if file.is_file() and not file.name.endswith((*_SUFFIXES, ".index.json")):
                shutil.copyfile(file, path / file.name)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_tensors(tensors, path / WEIGHTS[0], {"format": "pt"})
