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
        scores = log_scores(model, model.project(feature[:length]))  # one sentence at a time
        rows.append(scores.gather(1, target[:length, None])[:, 0].tolist())
    return rows


def log_scores(model: Model, logits: Tensor) -> Tensor:
    """(…, V) logits to (…, V) fp32 scores that a search adds up, log-probabilities as a rule; a new tensor."""
    if not model.normalised:
        return logits.to(torch.float32, copy=True)
    return logits.log_softmax(-1, dtype=torch.float32)


def in_chunks(rows: Tensor) -> list[slice]:
    """(R, V) logits in pieces whose scores stay in a processor's cache; on a GPU in one."""
    size = len(rows) if rows.device.type != "cpu" else max(1, _CHUNK // rows.shape[1])
    return [slice(start, start + size) for start in range(0, len(rows), size)]


_CHUNK = 1 << 19  # numbers; 2 MB in fp32
