"""Prefix tuning (Li & Liang 2021): learned keys and values before those of every attention.

Shapes: P prefix length, C model size, H heads, D head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

import mtplug
from mtplug.errors import UserError
from mtplug.nn.attention import MultiHeadAttention
from mtplug.peft.base import Change, PeftMethod, become
from mtplug.peft.targets import matched, named_modules
from mtplug.registry import require_range


@dataclass
class PrefixTuningConfig:
    """Learned keys and values that every attention sees before the real ones."""

    length: int = 10
    """prefix positions of each attention"""
    hidden: int = 0
    """inner size of a network that computes them during training, as in the paper; 0: they are trained
    directly"""
    targets: tuple[str, ...] = ()
    """roles, paths or patterns of attention; none: all"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "length")
        require_range(self, 0, math.inf, "hidden")


class Prefix(Change):
    """Keys and values of P positions, (G, P, D) each, for one `MultiHeadAttention`."""

    def __init__(self, attention: MultiHeadAttention, config: PrefixTuningConfig):
        super().__init__()
        dim, weight = attention.k.out_features, attention.k.weight
        self.heads = attention.kv_heads
        self.network: nn.Module | None = None
        if config.hidden:
            self.start = nn.Parameter(weight.new_empty(config.length, dim).normal_())
            self.network = nn.Sequential(
                nn.Linear(dim, config.hidden), nn.Tanh(), nn.Linear(config.hidden, 2 * dim)
            ).to(weight)
        else:
            self.keys = nn.Parameter(weight.new_empty(config.length, dim).normal_(std=0.02))
            self.values = nn.Parameter(weight.new_empty(config.length, dim).normal_(std=0.02))

    def keys_values(self) -> tuple[Tensor, Tensor]:
        if self.network is None:
            keys, values = self.keys, self.values
        else:
            keys, values = self.network(self.start).chunk(2, -1)
        return tuple(x.unflatten(-1, (self.heads, -1)).transpose(0, 1) for x in (keys, values))  # type: ignore[return-value]

    def attach(self, module: nn.Module, owner: bool = True) -> Change:
        super().attach(module, owner)
        module.prefixes = [*module.prefixes, self.keys_values]  # type: ignore
        return self


class PaddedOnly:
    """For a model whose attention has a prefix for each row, so that sentences cannot share one."""

    takes_packed = False


class PrefixTuning(PeftMethod):
    """A prefix for each `MultiHeadAttention`; sentences are padded, not packed."""

    lr: ClassVar[float] = 1e-2
    config: PrefixTuningConfig

    def adapt(self, model: nn.Module) -> None:
        kinds = (MultiHeadAttention,)
        everywhere = {p: m for p, m in named_modules(model).items() if isinstance(m, kinds)}
        if not everywhere:
            raise UserError(
                "peft.name=prefix_tuning needs attention of the class mtplug.nn.attention.MultiHeadAttention, "
                f"and this {type(model).__name__} has none; use another method"
            )
        targets = self.config.targets
        chosen = matched(model, targets, kinds, "peft.targets") if targets else everywhere
        for path, module in chosen.items():
            if type(module) is not MultiHeadAttention:  # it may look at more than keys and values
                raise UserError(
                    f"peft.targets: {path} is a {type(module).__name__}, which takes no prefix; name other "
                    "attention, or use another method"
                )
            Prefix(module, self.config).attach(module)  # type: ignore[arg-type]
        if getattr(model, "takes_packed", False):
            become(model, PaddedOnly)


@mtplug.hookimpl
def register_peft_methods(register):
    register("prefix_tuning", PrefixTuning, PrefixTuningConfig)
