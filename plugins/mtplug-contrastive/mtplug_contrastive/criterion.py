"""Contrastive learning against omitted words (Yang et al. 2019, ACL P19-1623).

A translation that leaves a word out is often more probable than the right one, being shorter. Here the
reference has to be more probable, by a margin, than itself without one random token.

Shapes: B sentences, T target positions, N positions without padding, C model size, V vocabulary.
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

PAD, EOS = 0, 1
ROWS = 1024
"""Positions whose logits are held at a time; the backward pass computes them again."""


@dataclass
class OmissionConfig(LabelSmoothedCrossEntropyConfig):
    """Cross-entropy, and a margin between the reference and the reference without one token."""

    margin: float = 1.0
    """nats by which log P of the reference has to be above that of the shortened one"""
    weight: float = 1.0
    """of the hinge loss of a sentence, beside the cross-entropy of its tokens"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 0:
            raise ValueError(f"weight must not be negative, but is {self.weight}")


class Omission:
    """CE + weight · Σ over sentences of max(0, margin + log P(shortened) - log P(reference)).

    In evaluation mode, where nothing may be random, it is the cross-entropy. Sentences of a single
    token cannot be shortened.
    """

    def __init__(self, config: OmissionConfig, task: Any):
        self.config = config

    def __call__(self, model: Any, batch: Any) -> Loss:
        if batch.packed:
            raise UserError("criterion omission takes padded batches; set training.packing=false")
        target, prev = batch.target_tokens, batch.prev_output_tokens
        contrast = model.training and self.config.weight > 0 and target.shape[1] > 2
        inputs = [batch.source_tokens, batch.source_lengths, prev]
        targets = [target]
        if contrast:
            shorter = shortened(target, draw(batch.target_lengths))
            targets.append(shorter)
            inputs = [torch.cat([x, x]) for x in inputs[:2]]
            inputs.append(torch.cat([prev, shifted(shorter)]))
        features = model(*inputs).chunk(len(targets))
        right_BT, mean_BT = _log_probs(model, features[0], target)
        nll, spread = -right_BT.sum(), -mean_BT.sum()
        loss = (1 - self.config.smoothing) * nll + self.config.smoothing * spread
        parts: dict[str, Tensor] = {}
        if contrast:
            wrong_BT, _ = _log_probs(model, features[1], targets[1])
            hinge = (self.config.margin + wrong_BT.sum(1) - right_BT.sum(1)).clamp(min=0)
            hinge = hinge[batch.target_lengths > 2].sum()
            loss = loss + self.config.weight * hinge
            parts["hinge"] = hinge.detach()
        return Loss(loss, int(batch.target_lengths.sum()), nll.detach(), parts=parts)


def draw(lengths: Tensor) -> Tensor:
    """(B,) lengths with `</s>` to (B,) positions to leave out, never that of `</s>`."""
    drawn = torch.rand(len(lengths), device=lengths.device) * (lengths - 1)
    return drawn.long().clamp(max=(lengths - 2).clamp(min=0))


def shortened(target: Tensor, positions: Tensor) -> Tensor:
    """(B, T) without the token at a position of each row, padded to T again."""
    kept = torch.arange(target.shape[1] - 1, device=target.device)[None, :]
    kept = kept + (kept >= positions[:, None])
    return torch.nn.functional.pad(target.gather(1, kept), (0, 1), value=PAD)


def shifted(target: Tensor) -> Tensor:
    """(B, T) decoder input of a target: `</s>`, then all but its own `</s>`."""
    prev = torch.full_like(target, PAD)
    prev[:, 0] = EOS
    prev[:, 1:] = target[:, :-1]
    return prev.masked_fill(target == PAD, PAD)


def _log_probs(model: Any, features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, C) and (B, T) to log p of each target token and the vocabulary's mean log p, 0 at padding."""
    real = target != PAD
    x_NC, target_N = features[real], target[real]
    parts = [
        checkpoint(_rows, model, x_NC[i : i + ROWS], target_N[i : i + ROWS], use_reentrant=False)
        for i in range(0, len(target_N), ROWS)
    ]
    found = []
    for values in zip(*parts, strict=True):  # type: ignore[arg-type]
        out = features.new_zeros(target.shape, dtype=torch.float32)
        found.append(out.masked_scatter(real, torch.cat(values)))
    return found[0], found[1]


def _rows(model: Any, x_NC: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    p_NV = model.project(x_NC).float().log_softmax(-1)
    return p_NV.gather(1, target_N[:, None])[:, 0], p_NV.mean(-1)


@mtplug.hookimpl
def register_criteria(register):
    register("omission", Omission, OmissionConfig)
