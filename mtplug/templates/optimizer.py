"""An optimizer: gradient descent with momentum."""

from dataclasses import dataclass

import torch

import mtplug

MTPLUG_API = {"optimizers": 1}


@dataclass
class MomentumConfig:
    """Stochastic gradient descent with momentum."""

    lr: float = 0.1
    """peak learning rate"""
    momentum: float = 0.9
    """share of the last step that is made again"""


def momentum_descent(config: MomentumConfig, parameters):
    return torch.optim.SGD(list(parameters), lr=config.lr, momentum=config.momentum)


@mtplug.hookimpl
def register_optimizers(register):
    register("NAME", momentum_descent, MomentumConfig)
