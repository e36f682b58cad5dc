"""What a conditional masked language model learns: some tokens of the target, given the others, and its length
(Ghazvininejad et al. 2019, section 2).

Shapes: B sentences, T target positions, M masked positions, C model size, V vocabulary.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtplug.criteria import LabelSmoothedCrossEntropyConfig, Loss, smoothed_cross_entropy
from mtplug.errors import UserError
from mtplug_maskpredict.model import FillsMasks, lowest, members


@dataclass
class CmlmConfig(LabelSmoothedCrossEntropyConfig):
    """Cross-entropy of masked tokens, of which there are uniformly many, and of the length."""

    length_weight: float = 1.0
    """of the negative log-likelihood of a sentence's length, beside those of its masked tokens"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.length_weight < float("inf"):
            raise ValueError(f"length_weight must be at least 0, not {self.length_weight}")


class Cmlm(FillsMasks):
    """Sums over masked tokens, by whose number they are divided; `nll` is about these too, without the length.

    In training masks come from torch's random numbers, which a checkpoint keeps. In evaluation mode they are
    those of each sentence, always the same.
    """

    def __init__(self, config: CmlmConfig, task: Any):
        self.config = config

    def __call__(self, model: Any, batch: Any) -> Loss:
        (cmlm,) = members(model)
        if batch.packed:
            raise UserError("criterion cmlm takes padded batches; set training.packing=false")
        target, counts = batch.target_tokens, batch.target_lengths - 1
        if model.training:
            share = torch.rand(len(target), device=target.device)
            noise = torch.rand(target.shape, device=target.device)
        else:
            share, noise = fixed_noise(target, counts)
        masked = uniform_mask(counts, share, noise)
        memory, padded = cmlm.encode(batch.source_tokens, batch.source_lengths)
        features = cmlm.decode(memory, padded, target.masked_fill(masked, cmlm.mask_id))
        loss, nll = smoothed_cross_entropy(
            cmlm, features[masked], target[masked], self.config.smoothing
        )
        lengths = cmlm.length_logits(memory, batch.source_lengths).float()
        longest = lengths.shape[1] - 1
        length_nll = F.cross_entropy(lengths, counts.clamp(max=longest), reduction="sum")
        loss = loss + self.config.length_weight * length_nll
        return Loss(
            loss, int(masked.sum()), nll.detach(), parts={"length_nll": length_nll.detach()}
        )


def uniform_mask(counts: Tensor, share: Tensor, noise: Tensor) -> Tensor:
    """Which tokens are masked, (B, T) bool: of N tokens 1, 2, … or N.

    Args:
        counts: (B,) N of each sentence, `</s>` not counted, which is never masked.
        share: (B,) from 0 on and below 1, uniform: how many.
        noise: (B, T) which: those with the least.
    """
    many = torch.minimum(1 + (share * counts).long(), counts)
    return lowest(noise, counts, many)


def fixed_noise(target: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """`share` and `noise` of `uniform_mask` that each target decides alone, whatever else is in its batch."""
    share, noise = np.zeros(len(target), np.float32), np.zeros(target.shape, np.float32)
    for row, (ids, count) in enumerate(zip(target.tolist(), counts.tolist(), strict=True)):
        seed = zlib.crc32(np.array(ids[:count], np.int64).tobytes())
        drawn = np.random.default_rng(seed).random(count + 1, np.float32)
        share[row], noise[row, :count] = drawn[0], drawn[1:]
    return torch.from_numpy(share).to(target.device), torch.from_numpy(noise).to(target.device)
