"""TensorBoard's event files in a run's folder: `tensorboard --logdir runs`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtplug
from mtplug.errors import UserError
from mtplug.training.trackers import Tracker
from mtplug.training.validation import read_samples


@dataclass
class TensorBoardConfig:
    """Scalars and sample translations for TensorBoard; needs `pip install tensorboard`."""

    folder: str = "tensorboard"
    """where event files go, below the run's folder"""


class TensorBoard(Tracker):
    """Writes `train/…`, `train/parts/…`, `validation/…` and `test/…` scalars, and samples and notes as text.

    Raises:
        UserError: tensorboard is not installed.
    """

    config: TensorBoardConfig

    def __init__(self, config: TensorBoardConfig, run_dir: Path):
        super().__init__(config, run_dir)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise UserError(
                f"logging.trackers: tensorboard needs another package ({e}): pip install 'mtplug[tensorboard]'"
            ) from None
        self.writer = SummaryWriter

    def start(self, update: int, max_updates: int) -> None:
        # TensorBoard itself drops what an earlier process wrote at or after purge_step.
        folder = self.run_dir / self.config.folder
        self.file = self.writer(str(folder), purge_step=update + 1 if update else None)

    def event(self, kind: str, values: dict[str, Any]) -> None:
        update = values.get("update", 0)
        if kind == "train":
            parts = {f"parts/{name}": value for name, value in values.get("parts", {}).items()}
            for name, value in {**values, **parts}.items():
                if name != "update" and isinstance(value, int | float):
                    self.file.add_scalar(f"train/{name}", value, update)
        elif kind == "validation":
            for name, value in values["scores"].items():
                self.file.add_scalar(f"validation/{name}", value, update)
            samples = self.run_dir / "samples" / f"valid-step-{update:08d}.txt"
            if samples.is_file():
                for i, (source, reference, translation) in enumerate(read_samples(samples)):
                    text = (
                        f"source: {source}  \nreference: {reference}  \ntranslation: {translation}"
                    )
                    self.file.add_text(f"samples/{i}", text, update)
        elif kind == "test":
            for name, value in values["scores"].items():
                self.file.add_scalar(f"test/{values['split']}/{name}", value, update)
        elif kind in ("note", "end"):
            self.file.add_text("notes", values["text"], update)
        self.file.flush()

    def close(self) -> None:
        self.file.close()


@mtplug.hookimpl
def register_trackers(register):
    register("tensorboard", TensorBoard, TensorBoardConfig)
