"""LoRA (Hu et al. 2022) with rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024) and LoRA+ (Hayou et al. 2024).

Shapes: I input and O output size of a linear map, V vocabulary, C model size, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

import mtplug
from mtplug.errors import UserError
from mtplug.peft.base import Change, PeftMethod, attached
from mtplug.peft.targets import by_weight, matched, named_modules, roles_of, with_own_weight
from mtplug.registry import require_fraction, require_range


@dataclass
class LoRAConfig:
    """Low-rank changes of linear maps and embeddings: W + scale · B A."""

    targets: tuple[str, ...] = ()
    """roles, paths or patterns of linear maps and embeddings; none: all linear maps but the output's"""
    rank: int = 8
    alpha: float = 16.0
    """the change is scaled by alpha / rank"""
    dropout: float = 0.0
    """on the input of the change"""
    rslora: bool = False
    """scale by alpha / √rank instead, which keeps high ranks stable"""
    dora: bool = False
    """train the lengths of W's rows separately from their directions; linear maps only"""
    lora_plus: float = 1.0
    """the learning rate of B, as a multiple of that of A; LoRA+ advises 16, with a lower learning rate"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "rank")
        require_fraction(self, "dropout")
        if not self.alpha or not math.isfinite(self.alpha):
            raise ValueError(f"alpha must be a number other than 0, not {self.alpha}")
        if self.lora_plus <= 0:
            raise ValueError(f"lora_plus must be above 0, not {self.lora_plus}")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LowRank(Change):
    """y = W x + scale · B A x, for one linear map, or for several that share W."""

    def __init__(self, linear: nn.Linear, config: LoRAConfig):
        super().__init__()
        like: Any = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_A = nn.Linear(linear.in_features, config.rank, bias=False, **like)
        self.lora_B = nn.Linear(config.rank, linear.out_features, bias=False, **like)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.scale, self.dropout = config.scale, config.dropout
        self.faster = [self.lora_B.weight]

    def after(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        x = F.dropout(args[0], self.dropout, self.training)
        return output + self.lora_B(self.lora_A(x)) * self.scale

    def delta(self) -> Tensor:
        """(O, I), what is added to W."""
        return self.lora_B.weight @ self.lora_A.weight * self.scale

    def merge(self, module: nn.Linear) -> None:  # type: ignore[override]
        module.weight.data += self.delta()


class Decomposed(LowRank):
    """DoRA: y = m / ‖W + Δ‖ · (W + Δ) x, lengths of rows m trained apart; equation 5 of the paper, with the
    norm taken for a constant in the backward pass (section 4.3)."""

    def __init__(self, linear: nn.Linear, config: LoRAConfig):
        super().__init__(linear, config)
        self.lora_magnitude_vector = nn.Parameter(torch.linalg.norm(linear.weight.detach(), dim=1))

    def after(self, module: nn.Linear, args: tuple, output: Tensor) -> Tensor:  # type: ignore[override]
        gain = self.lora_magnitude_vector / self._norm(module)
        x = args[0]
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
            plain = F.linear(x, module.weight)
        else:
            plain = output if module.bias is None else output - module.bias
        change = self.lora_B(self.lora_A(x)) * self.scale
        return output + (gain - 1) * plain + gain * change

    def _norm(self, module: nn.Linear) -> Tensor:
        with torch.no_grad():
            return torch.linalg.norm(module.weight + self.delta(), dim=1)

    def merge(self, module: nn.Linear) -> None:  # type: ignore[override]
        gain = self.lora_magnitude_vector / self._norm(module)
        module.weight.data = gain[:, None] * (module.weight + self.delta())


class LowRankTable(Change):
    """A low-rank change of a table of tokens, and of the output projection where that shares the table.

    The two ends of a tied pair look up rows of, and multiply by, one table: one change is for both.
    """

    def __init__(self, table: nn.Embedding | nn.Linear, config: LoRAConfig):
        super().__init__()
        size, dim = table.weight.shape
        like: Any = {"device": table.weight.device, "dtype": table.weight.dtype}
        self.lora_embedding_A = nn.Parameter(torch.zeros(config.rank, size, **like))
        self.lora_embedding_B = nn.Parameter(torch.randn(dim, config.rank, **like))
        self.scale, self.dropout = config.scale, config.dropout
        self.faster = [self.lora_embedding_B]

    def after(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if isinstance(module, nn.Embedding):
            rows = F.embedding(args[0], self.lora_embedding_A.T, module.padding_idx)
            return output + rows @ self.lora_embedding_B.T * self.scale
        x = F.dropout(args[0], self.dropout, self.training)
        return output + x @ self.lora_embedding_B @ self.lora_embedding_A * self.scale

    def merge(self, module: nn.Embedding) -> None:  # type: ignore[override]
        module.weight.data += (self.lora_embedding_B @ self.lora_embedding_A).T * self.scale


class LoRA(PeftMethod):
    """Low-rank changes; those of a tied table are one for all of its ends."""

    peft_type: ClassVar[str] = "LORA"
    config: LoRAConfig

    def adapt(self, model: nn.Module) -> None:
        chosen = adaptable(model, self.config.targets, "lora")
        for group in by_weight(model, chosen, (nn.Linear, nn.Embedding)):
            self._adapt(group)
        self.paths = list(chosen)

    def _adapt(self, group: dict[str, nn.Module]) -> None:
        c = self.config
        # An embedding comes first, since the parameters are in the form that a table has.
        order = sorted(group, key=lambda path: isinstance(group[path], nn.Linear))
        first: Any = group[order[0]]
        table = isinstance(first, nn.Embedding)
        if c.dora and (table or len(group) > 1):
            raise UserError(
                f"peft.dora: {' = '.join(group)} is a table of tokens or a tied weight, DoRA is for linear "
                "maps of their own; name other targets"
            )
        if c.dora and any(attached(name) for name, _ in first.named_children()):
            raise UserError(f"peft.dora: {order[0]} has an adapter already; DoRA must be the first")
        change: Any = (LowRankTable if table else Decomposed if c.dora else LowRank)(first, c)
        for path in order:
            change.attach(group[path], owner=path == order[0])
        self.twins.update(dict.fromkeys(order[1:], order[0]))
        for parameter in change.faster:
            parameter.lr_factor = c.lora_plus

    def describe(self) -> dict[str, Any]:
        c = self.config
        return {
            "r": c.rank,
            "lora_alpha": c.alpha,
            "lora_dropout": c.dropout,
            "use_rslora": c.rslora,
            "use_dora": c.dora,
            "target_modules": sorted({*self.paths, *self.twins, *self.twins.values()}),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
        }

    @classmethod
    def sum(
        cls, parts: list[Any], base: dict[str, Tensor]
    ) -> tuple[LoRAConfig, dict[str, Tensor], dict[str, Any]]:
        """The exact sum of the changes: ranks lie side by side. A module that an adapter leaves as it is
        has zeros for it.

        Raises:
            UserError: an adapter is of DoRA, whose changes are no sums.
        """
        if any(part.settings.dora for part in parts):
            raise UserError(
                "peft.dora: changes of DoRA have no sum; merge each into a model of its own"
            )
        like = {name: tensor for part in parts for name, tensor in part.tensors.items()}
        found = {}
        for name, tensor in like.items():
            # (R, I), (O, R), (R, V), (C, R): where the ranks are, and whether the scale goes into it
            dim, scaled = (0, False) if "_A" in name.rpartition("lora")[2] else (1, True)
            pieces = []
            for part in parts:
                shape = list(tensor.shape)
                shape[dim] = part.settings.rank
                piece = part.tensors.get(name, tensor.new_zeros(shape))
                pieces.append(piece * (part.weight * part.settings.scale if scaled else 1.0))
            found[name] = torch.cat(pieces, dim).contiguous()
        rank = sum(part.settings.rank for part in parts)
        heads = {n.rpartition(".lora_")[0] for n in found}
        settings = LoRAConfig(targets=tuple(sorted(heads)), rank=rank, alpha=float(rank))
        changed = {"r": rank, "lora_alpha": float(rank), "use_rslora": False, "lora_dropout": 0.0,
                   "target_modules": sorted(heads)}  # fmt: skip
        return settings, found, changed

    @classmethod
    def settings(cls, described: dict[str, Any]) -> dict[str, Any]:
        for key, plain in _PLAIN.items():
            if described.get(key, plain) not in (plain, None, {}, [], False):
                raise UserError(
                    f"adapter_config.json: {key}={described[key]} is not supported by lora"
                )
        start = described.get("init_lora_weights", True)
        if start not in (True, False, "gaussian", "orthogonal", "eva"):
            raise UserError(
                f"adapter_config.json: init_lora_weights={start} changed the base's weights too; have peft "
                "convert it to plain LoRA when saving (path_initial_model_for_weight_conversion)"
            )
        targets = described["target_modules"]
        if isinstance(targets, str) and targets != "all-linear":
            raise UserError(
                "adapter_config.json: target_modules as an expression is not supported; list names"
            )
        return {
            "targets": [] if isinstance(targets, str) else sorted(targets),
            "rank": described["r"],
            "alpha": described["lora_alpha"],
            "dropout": described.get("lora_dropout", 0.0),
            "rslora": described.get("use_rslora", False),
            "dora": described.get("use_dora", False),
        }


_PLAIN = {
    "bias": "none", "fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {}, "lora_bias": False,
    "modules_to_save": None, "layer_replication": None, "target_parameters": None,
    "trainable_token_indices": None, "use_qalora": False, "alora_invocation_tokens": None,
    "use_bdlora": None, "velora_config": None, "monteclora_config": None, "arrow_config": None,
    "kasa_config": None, "exclude_modules": None, "layers_to_transform": None,
}  # fmt: skip
"""Options of Hugging Face `peft` that change what is computed, and the values that are ours."""


def adaptable(
    model: nn.Module, targets: tuple[str, ...], method: str, tables: bool = False
) -> dict[str, nn.Module]:
    """Linear maps and embeddings that targets mean; without targets all linear maps but the output's.

    Args:
        tables: without targets also embeddings, and the output's map.

    Raises:
        UserError: there are none, or one has no weight of its own.
    """
    if targets:
        chosen = matched(model, targets, (nn.Linear, nn.Embedding), "peft.targets")
    else:
        kinds = (nn.Linear, nn.Embedding) if tables else (nn.Linear,)
        chosen = {
            path: module
            for path, module in named_modules(model).items()
            if isinstance(module, kinds)
            and not is_parametrized(module)
            and (tables or not is_output(model, path, module))
        }
    inner = [
        path
        for path, module in chosen.items()
        if isinstance(module, nn.Linear) and not is_output(model, path, module)
    ]
    if not inner and not targets:
        normed = sum(isinstance(m, nn.Linear) for m in model.modules() if is_parametrized(m))
        why = f": {normed} are under weight normalisation" if normed else ""
        raise UserError(
            f"peft.targets: {method} finds no linear maps in this model that it could change{why}; name modules, "
            "such as embeddings, or use another method (bitfit, select)"
        )
    with_own_weight(chosen, method)
    return chosen


def is_output(model: nn.Module, path: str, module: nn.Module) -> bool:
    """Whether a linear map makes the logits."""
    output = getattr(model, "output_weight", None)
    return module.weight is output or roles_of(model).get(path) == "output"


@mtplug.hookimpl
def register_peft_methods(register):
    register("lora", LoRA, LoRAConfig)
