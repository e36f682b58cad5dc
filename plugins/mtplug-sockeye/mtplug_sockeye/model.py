"""Architecture `sockeye`: decoding begins with `<s>`, logits have a bias, and sinusoids another order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtplug.exporting.marian_model import ForeignConfig, ForeignTransformer, OutputBias
from mtplug.nn.positions import Sinusoidal


class SockeyeSinusoidal(Sinusoidal):
    """Sinusoids as Sockeye has them: those of Vaswani et al., all sines first."""

    def _table(self, size: int) -> Tensor:
        table = super()._table(size)
        return torch.cat([table[:, 0::2], table[:, 1::2]], 1)


@dataclass
class SockeyeConfig(ForeignConfig):
    """Transformer of Sockeye."""


class SockeyeTransformer(ForeignTransformer, OutputBias):
    config: SockeyeConfig
    ctranslate2 = True
