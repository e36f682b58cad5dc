"""Elastic weight consolidation: what an old task needs is held near where it was."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

import mtplug
from mtplug.architectures.base import Model
from mtplug.architectures.vocabulary import rows_between
from mtplug.criteria.cross_entropy import (
    LabelSmoothedCrossEntropy,
    LabelSmoothedCrossEntropyConfig,
    Loss,
)
from mtplug.data.batching import Batch
from mtplug.data.tokenizers import pieces_of
from mtplug.errors import UserError


@dataclass
class EwcConfig(LabelSmoothedCrossEntropyConfig):
    """Cross-entropy and elastic weight consolidation (Kirkpatrick et al. 2017): λ/2 · Σ F (θ − θ*)²."""

    fisher: str = ""
    """file that `mtplug-fisher` wrote: weights θ* of the old task and their Fisher information F"""
    weight: float = 1.0
    """λ: how much the old task matters; F is that of whole sentences, so that it is about as large as the
    squared gradient of a sentence's loss"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fisher:
            raise ValueError(
                "'fisher' is missing: the file that mtplug-fisher makes of the old run"
            )
        if self.weight < 0:
            raise ValueError(f"weight must not be negative, but is {self.weight}")


class Ewc(LabelSmoothedCrossEntropy):
    """The penalty is added to the mean loss of an update, whatever its number of tokens or batches.

    Rows of a vocabulary are found by piece: those of pieces that the old task did not have are free. So
    are parameters that the old model did not have; those that only it had are told by a warning.

    Raises:
        UserError: the file is missing or no such file, its sizes are other than the model's, or nothing in it
            has the name of something that is trained.
    """

    def __init__(self, config: EwcConfig, task: Any):
        super().__init__(config, task)
        self.config, self.task = config, task
        self._held: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self.check_files(config)

    @staticmethod
    def check_files(config: EwcConfig) -> None:
        if not Path(config.fisher).is_file():
            raise UserError(
                f"criterion.fisher: {config.fisher} is no file; mtplug-fisher RUN makes one"
            )

    def __call__(self, model: Model, batch: Batch) -> Loss:
        loss = super().__call__(model, batch)
        penalty = loss.count * self.penalty(model)
        loss.sum, loss.parts = loss.sum + penalty, {"penalty": penalty.detach()}
        return loss

    def penalty(self, model: torch.nn.Module) -> Tensor:
        """λ/2 · Σ F (θ − θ*)² over all parameters that the old task had."""
        if self._held is None:
            self._held = self._match(model)
        parts = [(f * (p - anchor).square()).sum() for p, f, anchor in self._held]
        return self.config.weight / 2 * torch.stack(parts).sum()

    def _match(self, model: torch.nn.Module) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(parameter, its Fisher information, its old value)."""
        try:
            with safe_open(self.config.fisher, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            pieces = json.loads(about["pieces"])
        except (SafetensorError, KeyError) as error:
            raise UserError(
                f"criterion.fisher: {self.config.fisher} is not what mtplug-fisher writes ({error})"
            ) from None
        held: list[tuple[Tensor, Tensor, Tensor]] = []
        names: set[str] = set()
        absent = {name[7:] for name in tensors if name.startswith("fisher.")}
        for name, parameter in model.named_parameters():
            fisher, anchor = tensors.get(f"fisher.{name}"), tensors.get(f"anchor.{name}")
            if fisher is None or anchor is None:
                continue
            absent.discard(name)
            if isinstance(parameter, DTensor):
                raise UserError("criterion ewc needs whole weights; set training.parallel=ddp")
            if name in pieces["tables"]:
                fisher, anchor = self._rows(name, parameter, fisher, anchor, pieces)
            if fisher.shape == parameter.shape:
                held.append((parameter, fisher.to(parameter), anchor.to(parameter)))
                names.add(name)
            elif name not in pieces["tables"]:
                raise UserError(
                    f"criterion.fisher: {name} is {tuple(fisher.shape)} in {self.config.fisher} and "
                    f"{tuple(parameter.shape)} in the model; ewc holds a model of the old one's sizes"
                )
        if not held:
            raise UserError(
                f"criterion.fisher: no tensor of {self.config.fisher} has the name and shape of one of the model"
            )
        if names <= getattr(model, "base_names", frozenset()):
            raise UserError(
                "criterion.name=ewc: all that it would hold is frozen by peft, which changes no weight of the old "
                "task; leave one of them out"
            )
        if absent:
            shown = ", ".join(sorted(absent)[:3]) + (", …" if len(absent) > 3 else "")
            said = f"criterion.fisher: {len(absent)} tensors of {self.config.fisher} are none of the model's: {shown}"
            warnings.warn(said, RuntimeWarning, stacklevel=2)
        return held

    def _rows(
        self, name: str, parameter: Tensor, fisher: Tensor, anchor: Tensor, pieces: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        side = pieces["tables"][name]
        tokenizer = getattr(self.task, f"{side}_tokenizer")
        rows = rows_between(pieces_of(tokenizer), pieces[side])
        if rows is None or parameter.shape != (len(tokenizer), *fisher.shape[1:]):
            return fisher, anchor
        moved = torch.zeros_like(parameter, dtype=fisher.dtype, device="cpu")
        old = moved.clone()
        for row, sources in enumerate(rows.sources):
            if len(sources) == 1:
                moved[row], old[row] = fisher[sources[0]], anchor[sources[0]]
        return moved, old


@mtplug.hookimpl
def register_criteria(register):
    register("ewc", Ewc, EwcConfig)
