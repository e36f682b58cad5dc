"""A tracker that tells Weights & Biases (https://docs.wandb.ai) of a run.

Every entry carries `update`, and W&B is asked to draw everything over it instead of over its own
counter. So a part that a resumed run does again after a crash lands on the same places of a curve, and
nothing is refused for coming late.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

import mtplug
from mtplug.errors import UserError
from mtplug.registry import choice
from mtplug.training import Tracker

MTPLUG_API = {"trackers": 1}

NUMBERS = {
    "train": ("epoch", "loss", "nll", "lr", "gradient_norm", "tokens_per_second", "padding"),
    "validation": ("epoch",),
}
"""What is logged of an event beside its `scores`."""

LIVE: dict[str, Any] = {}
"""Runs of this process by id: one that failed without `close` is closed before it is resumed."""


@dataclass
class WandbConfig:
    """Weights & Biases: curves, scores, translated samples and the configuration of a run."""

    project: str = "mtplug"
    """project on W&B"""
    entity: str = ""
    """team or user; empty: the default of the account"""
    run_name: str = ""
    """name of the run on W&B; empty: that of the run's folder"""
    group: str = ""
    """runs of one group are shown together, such as seeds of one experiment"""
    tags: list[str] = field(default_factory=list)
    """words to find the run by"""
    mode: str = choice("environment", "online", "offline")
    """offline writes below RUN/wandb only, to be sent later by `wandb sync`; environment: as
    WANDB_MODE says, online if it says nothing"""


class Wandb(Tracker):
    """One run on W&B for one run's folder, however often it is resumed."""

    config: WandbConfig

    def start(self, update: int, max_updates: int) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("tracker wandb needs wandb: pip install wandb") from None
        c = self.config
        mode = os.environ.get("WANDB_MODE", "online") if c.mode == "environment" else c.mode
        self.wandb = wandb
        identity = self._id(fresh=update == 0)
        if before := LIVE.pop(identity, None):
            before.finish()
        try:
            self.run = wandb.init(
                project=c.project,
                entity=c.entity or None,
                name=c.run_name or self.run_dir.resolve().name,
                group=c.group or None,
                tags=c.tags or None,
                mode=mode,  # type: ignore[arg-type]
                id=identity,
                # Offline there is nobody to ask; `wandb sync` joins what has the same id.
                resume="allow" if mode == "online" else None,
                dir=str(self.run_dir),
                config=self._settings(),
                reinit="create_new",
                settings=wandb.Settings(console="off"),
            )
        except (wandb.errors.Error, TimeoutError) as error:
            first = str(error).strip().partition("\n")[0]
            raise UserError(
                f"tracker wandb: {first} (logging.trackers: mode=offline works without a connection)"
            ) from None
        LIVE[identity] = self.run
        self.run.define_metric("update", hidden=True)
        for group in ("train/*", "validation/*", "test/*", "samples"):
            self.run.define_metric(group, step_metric="update")

    def event(self, kind: str, values: dict[str, Any]) -> None:
        update = values.get("update", 0)
        if kind in ("train", "validation"):
            found = {key: values[key] for key in NUMBERS[kind] if key in values}
            found |= values.get("scores", {})
            found |= {f"parts/{key}": part for key, part in values.get("parts", {}).items()}
            entry = {f"{kind}/{key}": value for key, value in found.items()}
            if samples := self._samples(update) if kind == "validation" else []:
                columns: list[str | int] = ["source", "reference", "translation"]
                entry["samples"] = self.wandb.Table(columns=columns, data=samples)
            self.run.log({**entry, "update": update})
            if values.get("best"):
                scores = {f"best/{key}": value for key, value in values["scores"].items()}
                self.run.summary.update({**scores, "best/update": update})
        elif kind == "test":
            scores = {f"test/{values['split']}/{k}": v for k, v in values["scores"].items()}
            self.run.log({**scores, "update": update})
            self.run.summary[f"test/{values['split']}/checkpoint"] = values["checkpoint"]
        elif kind == "checkpoint":
            self.run.summary["checkpoint"] = values["path"]
        elif kind == "end":
            self.run.summary["ended_because"] = values["reason"]

    def close(self) -> None:
        LIVE.pop(self.run.id, None)
        self.run.finish()

    def _id(self, fresh: bool) -> str:
        """The id on W&B, kept in the run's folder; one of its own for a run that starts again."""
        file = self.run_dir / "wandb" / "mtplug-run-id"
        if fresh or not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(secrets.token_hex(6))
        return file.read_text()

    def _settings(self) -> dict[str, Any]:
        """The run's config.yaml, and what environment.json says of the machine."""
        found: dict[str, Any] = {}
        config, environment = self.run_dir / "config.yaml", self.run_dir / "environment.json"
        if config.is_file():
            found = OmegaConf.to_container(OmegaConf.load(config), resolve=True)  # type: ignore[assignment]
        if environment.is_file():
            found["environment"] = json.loads(environment.read_text(encoding="utf-8"))
        return found

    def _samples(self, update: int) -> list[list[str]]:
        """Source, reference and translation of each block of a validation's file of samples."""
        file = self.run_dir / "samples" / f"valid-step-{update:08d}.txt"
        if not file.is_file():
            return []
        blocks = file.read_text(encoding="utf-8").strip("\n").split("\n\n")
        return [[line.partition(" ")[2].strip() for line in b.split("\n")] for b in blocks]


@mtplug.hookimpl
def register_trackers(register):
    register("wandb", Wandb, WandbConfig)
