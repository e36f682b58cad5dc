"""R-Drop: two passes with different dropout shall agree (Liang et al. 2021, arXiv:2106.14448).

Shapes: B sentences, N target positions without padding, C model size, V vocabulary.
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

MTPLUG_API = {"criteria": 1}

ROWS = 1024
"""Positions whose logits are held at a time; the backward pass computes them again."""


@dataclass
class RDropConfig(LabelSmoothedCrossEntropyConfig):
    """Cross-entropy of two passes, and the divergence of their distributions."""

    alpha: float = 5.0
    """weight of the divergence; the paper's value for translation"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise ValueError(f"alpha must not be negative, but is {self.alpha}")


class RDrop:
    """(CE₁ + CE₂) / 2 + α / 2 · (KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁)) / 2, summed over target tokens.

    This is half of the paper's equation 4, so that the cross-entropy weighs as much as without R-Drop.
    In evaluation mode both passes are the same, and only one is made.
    """

    def __init__(self, config: RDropConfig, task: Any):
        self.config = config

    def __call__(self, model: Any, batch: Any) -> Loss:
        if batch.packed:
            raise UserError("criterion rdrop takes padded batches; set training.packing=false")
        inputs = (batch.source_tokens, batch.source_lengths, batch.prev_output_tokens)
        real = batch.target_tokens != 0  # (B, T); 0 is padding
        target_N = batch.target_tokens[real]
        passes = 2 if model.training else 1
        # One pass over the batch written twice, as in the paper: every copy draws its own dropout.
        features = model(*(torch.cat([x] * passes) for x in inputs))
        copies_NC = [part[real] for part in features.chunk(passes)]
        total, nll = (target_N.new_zeros((), dtype=torch.float32) for _ in "ab")
        for start in range(0, len(target_N), ROWS):
            here = slice(start, start + ROWS)
            rows = [copy[here] for copy in copies_NC]
            part, part_nll = checkpoint(
                self._rows, model, target_N[here], *rows, use_reentrant=False
            )  # type: ignore[misc]
            total, nll = total + part, nll + part_nll
        return Loss(total, len(target_N), nll.detach())

    def _rows(self, model: Any, target_N: Tensor, *copies_NC: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = [model.project(x_NC).float().log_softmax(-1) for x_NC in copies_NC]
        nlls = [-p_NV.gather(1, target_N[:, None]).sum() for p_NV in log_probs]
        nll = sum(nlls[1:], nlls[0]) / len(nlls)
        spread = -sum(p_NV.mean(-1).sum() for p_NV in log_probs) / len(log_probs)
        loss = (1 - self.config.smoothing) * nll + self.config.smoothing * spread
        if len(log_probs) == 2 and self.config.alpha:
            a_NV, b_NV = log_probs
            # KL(a‖b) + KL(b‖a) = Σ (a - b) (log a - log b)
            both = ((a_NV.exp() - b_NV.exp()) * (a_NV - b_NV)).sum()
            loss = loss + self.config.alpha / 4 * both
        return loss, nll


@mtplug.hookimpl
def register_criteria(register):
    register("rdrop", RDrop, RDropConfig)
