"""IA³ (Liu et al. 2022): keys, values and inner activations are stretched by learned vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

import mtplug
from mtplug.errors import UserError
from mtplug.peft.base import Change, PeftMethod
from mtplug.peft.targets import matched, roles_of, tied, with_own_weight


@dataclass
class IA3Config:
    """Learned factors of the outputs of keys and values, and of the input of a feed-forward layer's second map."""

    targets: tuple[str, ...] = ("k", "v")
    """linear maps whose outputs are stretched: roles, paths or patterns"""
    feedforward: tuple[str, ...] = ("ffn.out",)
    """linear maps whose inputs are stretched"""

    def __post_init__(self) -> None:
        if not self.targets and not self.feedforward:
            raise ValueError("'targets' and 'feedforward' are both empty")


class StretchedOutput(Change):
    """y = l ⊙ (W x + b)."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.ia3_l = nn.Parameter(linear.weight.new_ones(linear.out_features, 1))

    def after(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output * self.ia3_l.flatten()

    def merge(self, module: nn.Linear) -> None:  # type: ignore[override]
        module.weight.data *= self.ia3_l
        if module.bias is not None:
            module.bias.data *= self.ia3_l.flatten()


class StretchedInput(Change):
    """y = W (l ⊙ x) + b."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.ia3_l = nn.Parameter(linear.weight.new_ones(1, linear.in_features))

    def before(self, module: nn.Module, args: tuple) -> tuple:
        return (args[0] * self.ia3_l.flatten(), *args[1:])

    def merge(self, module: nn.Linear) -> None:  # type: ignore[override]
        module.weight.data *= self.ia3_l


class IA3(PeftMethod):
    """Learned vectors that stretch activations."""

    peft_type: ClassVar[str] = "IA3"
    lr: ClassVar[float] = 1e-2
    neutral: ClassVar[float] = 1.0
    config: IA3Config

    def adapt(self, model: nn.Module) -> None:
        kinds = (nn.Linear,)
        shared = {
            id(m)
            for group in tied(model, (nn.Linear, nn.Embedding)).values()
            for m in group.values()
        }
        if not roles_of(model) and self.config == IA3Config():
            raise UserError(
                "peft.targets: this architecture declares no roles; name the maps of keys and values in "
                "peft.targets, and the second maps of feed-forward layers in peft.feedforward"
            )
        self.outputs = matched(model, self.config.targets, kinds, "peft.targets")
        self.inputs = matched(model, self.config.feedforward, kinds, "peft.feedforward")
        with_own_weight({**self.outputs, **self.inputs}, "ia3")
        for path in sorted(self.outputs.keys() & self.inputs.keys()):
            raise UserError(f"peft.feedforward: {path} is one of peft.targets too; name it once")
        for chosen, change in ((self.outputs, StretchedOutput), (self.inputs, StretchedInput)):
            for path, module in chosen.items():
                if id(module) in shared:
                    raise UserError(
                        f"peft: {path} shares its weight with another module; ia3 cannot adapt one end"
                    )
                change(module).attach(module)  # type: ignore[arg-type]

    def describe(self) -> dict[str, Any]:
        return {
            "target_modules": sorted({*self.outputs, *self.inputs}),
            "feedforward_modules": sorted(self.inputs),
            "fan_in_fan_out": False,
            "init_ia3_weights": True,
        }

    @classmethod
    def settings(cls, described: dict[str, Any]) -> dict[str, Any]:
        targets, inner = (described.get(k) or [] for k in ("target_modules", "feedforward_modules"))
        if isinstance(targets, str) or isinstance(inner, str):
            raise UserError(
                "adapter_config.json: target_modules as an expression is not supported by ia3"
            )
        if described.get("modules_to_save") or described.get("fan_in_fan_out"):
            raise UserError(
                "adapter_config.json: modules_to_save and fan_in_fan_out are not supported by ia3"
            )
        return {"targets": sorted({*targets} - {*inner}), "feedforward": sorted(inner)}


@mtplug.hookimpl
def register_peft_methods(register):
    register("ia3", IA3, IA3Config)
