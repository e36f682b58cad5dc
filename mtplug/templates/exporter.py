"""An exporter: the weights as one NumPy archive, and the vocabulary as text."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mtplug

MTPLUG_API = {"exporters": 1}


@dataclass
class NumpyConfig:
    """weights.npz and vocabulary.txt."""

    dtype: str = "float32"
    """NumPy's name of the numbers' type"""


class NumpyExporter:
    def __init__(self, config: NumpyConfig):
        self.dtype = config.dtype

    def why_not(self, model, task):
        """A reason against exporting such a model, or nothing: checkpoint.export_check asks first."""
        return "" if hasattr(np, self.dtype) else f"NumPy has no type {self.dtype}"

    def export(self, translator, path: Path):
        path.mkdir(parents=True, exist_ok=True)
        weights = translator.model.state_dict()
        arrays = {k: v.float().cpu().numpy().astype(self.dtype) for k, v in weights.items()}
        np.savez(path / "weights.npz", **arrays)
        tokenizer = translator.task.target_tokenizer
        tokens = tokenizer.tokens(list(range(len(tokenizer))))
        (path / "vocabulary.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")


@mtplug.hookimpl
def register_exporters(register):
    register("NAME", NumpyExporter, NumpyConfig)
