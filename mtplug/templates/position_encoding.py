"""A position encoding: one learnt direction, scaled by the logarithm of the position."""

from dataclasses import dataclass

import torch
from torch import nn

import mtplug
from mtplug.nn.positions import PositionEncoding, Stack

MTPLUG_API = {"position_encodings": 1}


@dataclass
class LogRampConfig:
    """A ramp along a learnt direction, flatter at later positions."""

    scale: float = 0.1
    """length of the step from the first position to the second, in units of log 2"""


class LogRamp(PositionEncoding):
    def __init__(self, config: LogRampConfig, stack: Stack):
        super().__init__()
        self.scale = config.scale
        self.direction = nn.Parameter(torch.randn(stack.dim))

    def embed(self, start: int, length: int):
        steps = torch.arange(start, start + length, device=self.direction.device)
        return self.scale * torch.log2(1.0 + steps)[:, None] * self.direction


@mtplug.hookimpl
def register_position_encodings(register):
    register("NAME", LogRamp, LogRampConfig)
