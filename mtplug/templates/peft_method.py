"""A PEFT method: only biases are trained (BitFit, Ben Zaken et al. 2022)."""

from dataclasses import dataclass

import mtplug

MTPLUG_API = {"peft_methods": 1}


@dataclass
class BitFitConfig:
    """Train only parameters whose name ends in one of these."""

    endings: tuple[str, ...] = ("bias",)
    """ends of names"""


class BitFit:
    def __init__(self, config: BitFitConfig):
        self.endings = tuple(config.endings)

    def apply(self, model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(self.endings))
        return model


@mtplug.hookimpl
def register_peft_methods(register):
    register("NAME", BitFit, BitFitConfig)
