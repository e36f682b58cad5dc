"""What the cross-attention of finished translations says: coverage and alignment."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtplug.architectures.base import Model
from mtplug.data.batching import Batch, collate
from mtplug.errors import UserError
from mtplug.search.base import Hypothesis


def cross_attention(model: Model, batch: Batch) -> list[Tensor] | None:
    """For each sentence (T, S): a row for each target token, `</s>` last, which sums to 1 over the
    source's tokens, `</s>` last. None if the architecture has no cross-attention to show.
    """
    written = batch.prev_output_tokens if model.autoregressive else batch.target_tokens
    with torch.inference_mode():
        weights = model.cross_attention(batch.source_tokens, batch.source_lengths, written)
    if weights is None:
        return None
    sizes = zip(batch.target_lengths.tolist(), batch.source_lengths.tolist(), strict=True)
    return [row[:t, :s].float() for row, (t, s) in zip(weights, sizes, strict=True)]


def coverage_penalties(
    model: Model, source_tokens: Tensor, source_lengths: Tensor, found: list[list[Hypothesis]]
) -> list[list[float]]:
    """For each hypothesis Σ over source tokens of log min(attention they got in all, 1).

    The attention is that of forced decoding, which is what the search saw. 0: all is covered.
    """
    sources = [ids[: n - 1] for ids, n in zip(source_tokens.tolist(), source_lengths, strict=True)]
    pairs = [(sources[n], h.tokens) for n, row in enumerate(found) for h in row]
    values: list[float] = []
    for start in range(0, len(pairs), len(found)):  # no more rows at once than sentences
        part = pairs[start : start + len(found)]
        batch = collate(part, np.arange(len(part))).to(source_tokens.device)
        shown = cross_attention(model, batch)
        if shown is None:
            raise UserError(
                f"search.coverage_penalty: {type(model).__name__} has no cross-attention, which it needs"
            )
        for weights in shown:
            values.append(float(weights.sum(0).clamp(1e-6, 1).log().sum()))
    numbers = iter(values)
    return [[next(numbers) for _ in row] for row in found]
