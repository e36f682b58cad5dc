"""Guided alignment: cross-attention is taught what a statistical aligner finds (Chen et al. 2016, Garg et al. 2019).

Shapes: B sentences, S source and T target positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor

import mtplug
from mtplug.architectures import Model
from mtplug.criteria import LabelSmoothedCrossEntropy, LabelSmoothedCrossEntropyConfig, Loss
from mtplug.errors import UserError

from .aligner import Aligner, learn

MTPLUG_API = {"criteria": 1}

EOS = 1


@dataclass
class GuidedAlignmentConfig(LabelSmoothedCrossEntropyConfig):
    """Cross-entropy, and that of cross-attention against a statistical alignment of the training data."""

    weight: float = 0.2
    """of the alignment's loss, beside the cross-entropy of the tokens"""
    links: int = 20_000_000
    """pairs of tokens that the aligner is learnt from, at most; each takes about 30 bytes meanwhile"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight", "links"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")


class GuidedAlignment(LabelSmoothedCrossEntropy):
    """CE - weight · Σ over target tokens t and source tokens s of g(t, s) · log attention(t, s).

    g is the probability by the aligner, in both directions, that t stands for s: of a token that it is not
    sure about next to nothing is asked. The attention is what `Model.cross_attention` shows, in a second pass.
    In evaluation mode it is the cross-entropy.
    """

    def __init__(self, config: GuidedAlignmentConfig, task: Any):
        super().__init__(config, task)
        self.config, self.task = config, task
        self.aligner: Aligner | None = None

    @staticmethod
    def why_not(config: GuidedAlignmentConfig, model: Model) -> str:
        if model.autoregressive and not model.aligned:
            tokens = torch.full((1, 2), EOS, device=next(model.parameters()).device)
            lengths = torch.full_like(tokens[0, :1], 2)
            with torch.no_grad():
                if model.cross_attention(tokens, lengths, tokens) is not None:
                    return ""
        return f"{type(model).__name__} has no cross-attention to guide"

    def fit(self, batches: Iterable[Any]) -> None:
        """Learn the aligner from training batches.

        Raises:
            UserError: they are packed, or empty.
        """
        sizes = len(self.task.source_tokenizer), len(self.task.target_tokenizer)
        self.aligner = learn(batches, *sizes, self.config.links)

    def __call__(self, model: Any, batch: Any) -> Loss:
        loss = super().__call__(model, batch)
        if not model.training or not self.config.weight:
            return loss
        disagreement = self.disagreement(model, batch)
        loss.sum = loss.sum + self.config.weight * disagreement
        loss.parts = {"alignment": disagreement.detach()}
        return loss

    @torch.compiler.disable
    def disagreement(self, model: Any, batch: Any) -> torch.Tensor:
        """-Σ g · log attention, of the whole batch."""
        if any(isinstance(p, DTensor) for p in model.parameters()):
            raise UserError(
                "criterion guided_alignment takes whole weights; set training.parallel=ddp"
            )
        inputs = (batch.source_tokens, batch.source_lengths, batch.prev_output_tokens)
        weights_BTS = model.cross_attention(*inputs)
        if self.aligner is None:
            raise UserError("criterion guided_alignment: `fit` comes before training")
        self.aligner = self.aligner.to(weights_BTS.device)
        wanted_BTS = self.aligner(batch)
        return -(wanted_BTS * weights_BTS.float().clamp(min=1e-9).log()).sum()


@mtplug.hookimpl
def register_criteria(register):
    register("guided_alignment", GuidedAlignment, GuidedAlignmentConfig)
