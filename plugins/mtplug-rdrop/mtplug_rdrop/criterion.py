"""R-Drop: two passes with different dropout shall agree (Liang et al. 2021, arXiv:2106.14448).

Shapes: B sentences, N target positions without padding, C model size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mtplug
from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig, Loss
from mtplug.errors import UserError

from .loss import linear_rdrop

MTPLUG_API = {"criteria": 1}


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
        self.cross_entropy = LabelSmoothedCrossEntropy(config, task)

    def __call__(self, model: Any, batch: Any) -> Loss:
        if batch.packed:
            raise UserError("criterion rdrop takes padded batches; set training.packing=false")
        if not model.training:
            return self.cross_entropy(model, batch)
        inputs = (batch.source_tokens, batch.source_lengths, batch.prev_output_tokens)
        real = batch.target_tokens != 0  # (B, T); 0 is padding
        target_N = batch.target_tokens[real]
        # One pass over the batch written twice, as in the paper: every copy draws its own dropout.
        features = model(*(torch.cat([x, x]) for x in inputs))
        copies_NC = torch.stack([part[real] for part in features.chunk(2)])
        if model.output_weight is not None:
            total, nll = linear_rdrop(
                copies_NC, model.output_weight, target_N, self.config.smoothing, self.config.alpha
            )
        else:
            total, nll = self._all_logits(model, target_N, copies_NC)
        return Loss(total, len(target_N), nll.detach())

    def _all_logits(self, model: Any, target_N: Tensor, copies_NC: Tensor) -> tuple[Tensor, Tensor]:
        a_NV, b_NV = log_probs = model.project(copies_NC).float().log_softmax(-1)
        nll = -log_probs.gather(-1, target_N.expand(2, -1)[..., None]).sum() / 2
        spread = -log_probs.mean(-1).sum() / 2
        # KL(a‖b) + KL(b‖a) = Σ (a - b) (log a - log b)
        both = ((a_NV.exp() - b_NV.exp()) * (a_NV - b_NV)).sum()
        smoothing = self.config.smoothing
        return (1 - smoothing) * nll + smoothing * spread + self.config.alpha / 4 * both, nll


@mtplug.hookimpl
def register_criteria(register):
    register("rdrop", RDrop, RDropConfig)
