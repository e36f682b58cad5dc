"""Position encodings: the kind `position_encodings`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import mtplug
from mtplug.errors import UserError
from mtplug.registry import NoConfig


class PositionEncoding(nn.Module):
    """Says what is added to token embeddings at each position."""

    def embed(self, start: int, length: int) -> Tensor:
        """(length, C) for the absolute positions `start` … `start + length - 1`."""
        raise NotImplementedError


class Sinusoidal(PositionEncoding):
    """Fixed sines and cosines (Vaswani et al. 2017, section 3.5); any length."""

    def __init__(self, config: NoConfig, dim: int):
        super().__init__()
        self.dim = dim
        self.table: Tensor
        self.register_buffer("table", torch.zeros(0, dim), persistent=False)

    def embed(self, start: int, length: int) -> Tensor:
        if len(self.table) < start + length:
            size = max(512, 2 * (start + length))
            positions = torch.arange(size, device=self.table.device, dtype=torch.float32)
            half = torch.arange(0, self.dim, 2, device=self.table.device, dtype=torch.float32)
            angles = positions[:, None] * torch.exp(half * (-math.log(10000.0) / self.dim))
            table = torch.zeros(size, self.dim, device=self.table.device)
            table[:, 0::2] = angles.sin()
            table[:, 1::2] = angles.cos()[:, : self.dim // 2]
            self.table = table
        return self.table[start : start + length]


@dataclass
class LearnedConfig:
    """One learnt vector for each position."""

    max_positions: int = 1024
    """positions there are; longer sentences are an error"""


class Learned(PositionEncoding):
    """A table of vectors (Gehring et al. 2017)."""

    def __init__(self, config: LearnedConfig, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(config.max_positions, dim) * dim**-0.5)

    def embed(self, start: int, length: int) -> Tensor:
        if start + length > len(self.weight):
            raise UserError(
                f"a sentence has {start + length} tokens, position.max_positions is "
                f"{len(self.weight)}; raise it or lower data.max_length"
            )
        return self.weight[start : start + length]


@mtplug.hookimpl
def register_position_encodings(register):
    register("sinusoidal", Sinusoidal)
    register("learned", Learned, LearnedConfig)
