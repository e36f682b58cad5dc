"""Bottleneck adapters: small feed-forward layers between those of the base.

Shapes: C model size, M bottleneck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

import mtplug
from mtplug.errors import UserError
from mtplug.nn.activations import ACTIVATIONS
from mtplug.nn.attention import MultiHeadAttention
from mtplug.peft.base import Change, PeftMethod
from mtplug.peft.targets import matched, roles_of
from mtplug.registry import choice, require_fraction, require_range

PLACES = {
    "houlsby": ("self.out", "cross.out", "ffn.out"),
    "pfeiffer": ("ffn.out",),
    "parallel": ("ffn",),
    "bapna": ("layer",),
}


@dataclass
class AdapterConfig:
    """Bottleneck adapters, in one of four places."""

    style: str = choice("pfeiffer", "houlsby", "parallel", "bapna")
    """houlsby: on the output of attention and of feed-forward layers (Houlsby et al. 2019); pfeiffer: of
    feed-forward layers only (Pfeiffer et al. 2021); parallel: from their input to their output (He et al.
    2022); bapna: on each layer's output, normalised first (Bapna & Firat 2019)"""
    bottleneck: int = 32
    """inner size"""
    activation: str = choice("relu", "gelu", "swish")
    dropout: float = 0.0
    """inside the adapter"""
    scale: float = 1.0
    """factor of what the adapter adds; He et al. advise 4 for parallel ones"""
    targets: tuple[str, ...] = ()
    """roles, paths or patterns of the modules that get one; none: those of the style"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "bottleneck")
        require_fraction(self, "dropout")


class Bottleneck(Change):
    """Adds up(activation(down(x))), zero before training, to the output of a module.

    `x` is that output; with `parallel`, the module's input; with `norm`, layer-normalised.
    """

    def __init__(self, module: nn.Module, config: AdapterConfig, path: str):
        super().__init__()
        parallel, norm = config.style == "parallel", config.style == "bapna"
        size = size_of(module, last=True)
        width = size_of(module, last=False) if parallel else size
        if size is None or width is None:
            raise UserError(
                f"peft.targets: {path}, a {type(module).__name__}, holds no linear map or normalisation that "
                "shows its size; name another module"
            )
        parameter = next(module.parameters())
        like: Any = {"device": parameter.device, "dtype": parameter.dtype}
        self.norm = nn.LayerNorm(size, **like) if norm else nn.Identity()
        self.down = nn.Linear(width, config.bottleneck, **like)
        self.up = nn.Linear(config.bottleneck, size, **like)
        nn.init.xavier_uniform_(self.down.weight)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.parallel, self.scale, self.dropout = parallel, config.scale, config.dropout
        self.activation = ACTIVATIONS[config.activation]

    def after(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        x = self.norm(args[0] if self.parallel else output)
        x = F.dropout(self.activation(self.down(x)), self.dropout, self.training)
        return output + self.up(x) * self.scale


def size_of(module: nn.Module, last: bool) -> int | None:
    """The size of a module's output (or of its input), by the last (first) one inside that tells it."""
    inside = [
        m
        for m in module.modules()
        if isinstance(m, (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm))
    ]
    if not inside:
        return None
    found = inside[-1 if last else 0]
    if isinstance(found, nn.Linear):
        return found.out_features if last else found.in_features
    if isinstance(found, nn.Embedding):
        return found.embedding_dim
    return int(found.normalized_shape[-1])


class Adapter(PeftMethod):
    """Bottlenecks after, or beside, modules of the base."""

    lr: ClassVar[float] = 1e-3
    config: AdapterConfig

    def adapt(self, model: nn.Module) -> None:
        c, roles = self.config, roles_of(model)
        if c.targets:
            chosen = matched(model, c.targets, (nn.Module,), "peft.targets")
        else:
            ends = tuple(f".{place}" for place in PLACES[c.style])
            # A shared module has a role for each of its paths, and gets one bottleneck.
            first: dict[nn.Module, str] = {}
            for path, role in roles.items():
                if f".{role}".endswith(ends):
                    first.setdefault(model.get_submodule(path), path)
            chosen = {path: module for module, path in first.items()}
        if not chosen:
            raise UserError(
                f"peft.targets: this architecture has no {' or '.join(PLACES[c.style])} among its roles; "
                "name the modules that get an adapter"
            )
        for path, module in chosen.items():
            if any(path.startswith(f"{other}.") for other in chosen):
                continue  # what lies inside was meant with it
            if isinstance(module, MultiHeadAttention):  # its output leaves by this, in search too
                path, module = f"{path}.out", module.out
            Bottleneck(module, c, path).attach(module)


@mtplug.hookimpl
def register_peft_methods(register):
    register("adapter", Adapter, AdapterConfig)
