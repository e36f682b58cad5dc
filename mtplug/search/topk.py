"""The largest logits of a row without sorting the row."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64


def top_tokens(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their indices, best first, as `Tensor.topk`, ties aside.

    The k largest values lie in the k blocks whose maxima are largest, so one pass that a CPU
    vectorises (maxima of blocks) leaves k·BLOCK values to select from.

    Args:
        logits: (R, V); `k` may be more than V, then all are returned.
    """
    rows, size = logits.shape
    whole = size // BLOCK
    if logits.device.type != "cpu" or whole < 4 * k:
        return logits.topk(min(k, size))
    body = logits[:, : whole * BLOCK].unflatten(1, (whole, BLOCK))
    blocks = body.amax(-1).topk(k, sorted=False).indices
    indices = (blocks[..., None] * BLOCK + torch.arange(BLOCK)).flatten(1)
    if whole * BLOCK < size:
        rest = torch.arange(whole * BLOCK, size).expand(rows, -1)
        indices = torch.cat([indices, rest], 1)
    values, picked = logits.gather(1, indices).topk(k)
    return values, indices.gather(1, picked)
