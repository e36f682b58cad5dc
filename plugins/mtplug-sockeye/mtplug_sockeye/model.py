"""Architecture `sockeye`: decoding begins with `<s>`, logits have a bias, and sinusoids another order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.exporting.foreign import ForeignConfig, ForeignTransformer
from mtplug.nn.positions import Sinusoidal


class SockeyeSinusoidal(Sinusoidal):
    """Sinusoids as Sockeye has them: those of Vaswani et al., all sines first."""

    def _table(self, size: int) -> Tensor:
        table = super()._table(size)
        return torch.cat([table[:, 0::2], table[:, 1::2]], 1)


@dataclass
class SockeyeConfig(ForeignConfig):
    """Transformer of Sockeye."""


class SockeyeTransformer(ForeignTransformer):
    """Logits have a bias."""

    ctranslate2 = True

    def __init__(self, config: SockeyeConfig, task: Any):
        super().__init__(config, task)
        self.output_bias = nn.Parameter(torch.zeros(len(task.target_tokenizer)))

    def project(self, features: Tensor) -> Tensor:
        return self.output(features) + self.output_bias

    @property
    def output_weight(self) -> None:  # type: ignore[override]
        return None
