"""Folders that Hugging Face's transformers writes: settings in JSON, weights in one file or in several."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from mtplug.errors import UserError
from mtplug.files import read_pickled, read_tensors, save_tensors

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".ot")
"""Of weights in any of the formats that a folder may have beside each other."""


def read_json(file: Path, default: Any = None) -> Any:
    """What a file of settings holds; `default`, if there is one, where it is missing.

    Raises:
        UserError: it is missing, or no JSON.
    """
    if not file.is_file() and default is not None:
        return default
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
            parts = sorted(set(read_json(index).get("weight_map", {}).values()))
        else:
            continue
        found: dict[str, Tensor] = {}
        for part in parts:
            read = read_tensors if Path(part).suffix == ".safetensors" else read_pickled
            found |= read(folder / part)
        return {name: tensor.float() for name, tensor in found.items()}
    raise UserError(f"{folder} has neither {' nor '.join(WEIGHTS)}")


def write_like(like: Path, path: Path, tensors: dict[str, Tensor]) -> None:
    """Weights, and beside them all other files of the folder that a model was read from.

    Args:
        like: that folder; its weights are left out.
        path: the folder to write.
        tensors: by the names of that format.
    """
    path.mkdir(parents=True, exist_ok=True)
    for file in sorted(like.iterdir()):
        if file.is_file() and not file.name.endswith((*_SUFFIXES, ".index.json")):
            shutil.copyfile(file, path / file.name)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_tensors(tensors, path / WEIGHTS[0], {"format": "pt"})
