"""Training some of a model's own parameters: by pattern, or all biases (BitFit, Ben Zaken et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

import mtplug
from mtplug.errors import UserError
from mtplug.peft.base import PeftMethod
from mtplug.peft.targets import matched_parameters


@dataclass
class SelectConfig:
    """Train parameters by name and freeze the others."""

    targets: tuple[str, ...] = ()
    """names or patterns of parameters, or roles, paths or patterns of what holds them"""

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("'targets' is missing: which parameters are trained?")


@dataclass
class BitFitConfig:
    """Train biases only."""

    targets: tuple[str, ...] = ()
    """roles, paths or patterns of modules; none: all of the model"""


class Select(PeftMethod):
    """Some of the model's own parameters, by name."""

    lr: ClassVar[float] = 1e-4

    def adapt(self, model: nn.Module) -> None:
        names = matched_parameters(model, self.config.targets, "peft.targets")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)


class BitFit(PeftMethod):
    """The biases of a model, or of some of its modules."""

    def adapt(self, model: nn.Module) -> None:
        names = matched_parameters(model, self.config.targets or ("*",), "peft.targets")
        biases = {n: p for n, p in model.named_parameters() if n in names and _is_bias(n)}
        if not biases:
            raise UserError("peft.targets: bitfit trains biases, and what is meant has none")
        for parameter in biases.values():
            parameter.requires_grad_(True)


def _is_bias(name: str) -> bool:
    """torch's recurrent layers call theirs `bias_ih_l0`."""
    last = name.rpartition(".")[2]
    return last == "bias" or last.startswith("bias_")


@mtplug.hookimpl
def register_peft_methods(register):
    register("select", Select, SelectConfig)
    register("bitfit", BitFit, BitFitConfig)
