"""Word-level knowledge distillation (Kim and Rush 2016, arXiv:1606.07947, section 3.1).

At every position of the reference the student learns the teacher's whole distribution besides the right
token: (1 - weight) · CE + weight · -Σ q log p, with q the teacher's and p the student's probabilities.

Shapes: N target positions without padding, C model size (of each model its own), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import mtplug
from mtplug.criteria import LabelSmoothedCrossEntropyConfig, Loss
from mtplug.errors import UserError
from mtplug.search import same_vocabulary
from mtplug.search.base import existing_run

MTPLUG_API = {"criteria": 1}

PAD = 0
ROWS = 1024
"""Positions whose logits are held at a time; the backward pass computes them again."""


@dataclass
class DistillationConfig(LabelSmoothedCrossEntropyConfig):
    """Cross-entropy with the references and with the distributions of a trained run."""

    teacher: str = ""
    """folder of the teacher's run; it needs the same vocabulary"""
    checkpoint: str = "best"
    """of the teacher; several, with commas, teach together as an ensemble"""
    weight: float = 0.5
    """share of the teacher's part in the loss, from 0 to 1"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be from 0 to 1, but is {self.weight}")


class Distillation:
    """Summed over target tokens. In evaluation mode, where the teacher is not asked, cross-entropy.

    Raises:
        UserError: there is no teacher, or it has another vocabulary.
    """

    def __init__(self, config: DistillationConfig, task: Any):
        self.config = config
        translator = mtplug.load(config.teacher, config.checkpoint, device="cpu")
        for side in ("source_tokenizer", "target_tokenizer"):
            what = f"criterion.teacher: {config.teacher}"
            same_vocabulary(getattr(task, side), getattr(translator.task, side), what)
        self.teacher = translator.model.eval().requires_grad_(False)

    @staticmethod
    def check_files(config: DistillationConfig) -> None:
        if not config.teacher:
            raise UserError("criterion.teacher: no run is given; set the folder of a trained run")
        existing_run(config.teacher, "criterion.teacher")

    def __call__(self, model: Any, batch: Any) -> Loss:
        teaching = model.training and self.config.weight > 0
        if batch.packed and teaching and not self.teacher.takes_packed:
            raise UserError(
                "criterion distillation: the teacher takes padded batches only; set "
                "training.packing=false"
            )
        real = batch.target_tokens != PAD
        target_N = batch.target_tokens[real]
        features = [model(*batch.inputs)[real]]
        if teaching:
            self.teacher.to(target_N.device)
            with torch.no_grad():
                features.append(self.teacher(*batch.inputs)[real])
        total, nll = (target_N.new_zeros((), dtype=torch.float32) for _ in "ab")
        for start in range(0, len(target_N), ROWS):
            here = slice(start, start + ROWS)
            rows = [x[here] for x in features]
            part, part_nll = checkpoint(
                self._rows, model, target_N[here], *rows, use_reentrant=False
            )  # type: ignore[misc]
            total, nll = total + part, nll + part_nll
        return Loss(total, len(target_N), nll.detach())

    def _rows(
        self, model: Any, target_N: Tensor, x_NC: Tensor, teacher_NC: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        p_NV = model.project(x_NC).float().log_softmax(-1)
        nll = -p_NV.gather(1, target_N[:, None]).sum()
        smoothing, weight = self.config.smoothing, self.config.weight
        loss = (1 - smoothing) * nll - smoothing * p_NV.mean(-1).sum()
        if teacher_NC is not None:
            with torch.no_grad():
                q_NV = self.teacher.project(teacher_NC).float().softmax(-1)
            loss = (1 - weight) * loss - weight * (q_NV * p_NV).sum()
        return loss, nll


@mtplug.hookimpl
def register_criteria(register):
    register("distillation", Distillation, DistillationConfig)
