"""Forced decoding: what a model thinks of given translations."""

from __future__ import annotations

import torch
from torch import Tensor

from mtplug.architectures.base import Model
from mtplug.data.batching import Batch


@torch.inference_mode()
def forced_scores(model: Model, batch: Batch) -> list[list[float]]:
    """Log-probability, in nats, of each target token of each sentence, `</s>` last."""
    features = model(batch.source_tokens, batch.source_lengths, batch.prev_output_tokens)
    rows = []
    for feature, target, length in zip(
        features, batch.target_tokens, batch.target_lengths.tolist(), strict=True
    ):
        logits = model.project(feature[:length]).float()  # (T, V) of one sentence at a time
        chosen = logits.gather(1, target[:length, None])[:, 0]
        rows.append((chosen - normaliser(model, logits)[:, 0]).tolist())
    return rows


def normaliser(model: Model, logits: Tensor) -> Tensor:
    """(…, V) to (…, 1), what logits are lowered by to be the scores that a search adds up."""
    if not model.normalised:
        return logits.new_zeros(*logits.shape[:-1], 1)
    return logits.logsumexp(-1, keepdim=True)
