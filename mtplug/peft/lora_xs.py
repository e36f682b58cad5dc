"""LoRA-XS (Bałazy et al. 2024) in subspaces that the training data chooses: W + U M V, where only M is trained.

LoRA-XS takes U and V from the singular vectors of W. Here they are, for each map, a truncated higher-order
singular value decomposition (De Lathauwer et al. 2000) of the gradients of single tokens, g xᵀ with input x and
gradient g of the output, before the first update: V holds the leading eigenvectors of Σ ‖g‖² x xᵀ, U those of
Σ ‖x‖² g gᵀ. Of all subspaces of these sizes they keep nearly the most of the gradients' squares.

Shapes: I input and O output size of a linear map, V vocabulary, C model size, P and Q sizes of the subspaces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtplug
from mtplug.errors import UserError
from mtplug.nn.modes import evaluating
from mtplug.peft.base import Change, PeftMethod, changes
from mtplug.peft.lora import adaptable, is_output
from mtplug.peft.targets import by_weight
from mtplug.registry import require_range


@dataclass
class LoRAXSConfig:
    """Changes of linear maps and embeddings in subspaces that the training data chooses: W + U M V."""

    targets: tuple[str, ...] = ()
    """roles, paths or patterns of linear maps and embeddings; none: all of them"""
    share: float = 0.03
    """of each weight, how many numbers are trained: M has √share times the rows and columns of W"""
    tokens: int = 20000
    """of training data that the subspaces are chosen by, in target tokens"""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {self.share}")
        require_range(self, 1, math.inf, "tokens")

    def size(self, side: int) -> int:
        """Of the subspace of a side of W."""
        return max(1, round(math.sqrt(self.share) * side))


class Gradients:
    """Σ ‖g‖² x xᵀ and Σ ‖x‖² g gᵀ over tokens, or the diagonal of the latter."""

    def __init__(self, rows: int, columns: int, diagonal: bool, like: Tensor):
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        exact: Any = {"device": like.device, "dtype": self.dtype}
        self.left = torch.zeros((rows,) if diagonal else (rows, rows), **exact)
        self.right = torch.zeros(columns, columns, **exact)

    def add(self, x: Tensor, g: Tensor) -> None:
        """Inputs (…, I) and gradients (…, O); tokens without a gradient, as padding is, count nothing."""
        x, g = (t.detach().flatten(0, -2).to(self.dtype) for t in (x, g))
        self.right += x.T @ (x * g.square().sum(-1, keepdim=True))
        weight = x.square().sum(-1, keepdim=True)
        self.left += (g.square() * weight).sum(0) if self.left.ndim == 1 else g.T @ (g * weight)

    def add_rows(self, tokens: Tensor, g: Tensor) -> None:
        """The same for rows of a table that were looked up: tokens (…), gradients (…, C)."""
        g = g.flatten(0, -2).to(self.dtype)
        self.right += g.T @ g
        self.left.index_add_(0, tokens.flatten(), g.square().sum(-1))


class Inside(Change):
    """y = W x + U M V x of one linear map, or of several that share W.

    Attributes:
        lora_xs_M: (P, Q), trained.
        lora_xs_U, lora_xs_V: (O, P) and (Q, I), fixed, bfloat16 where W is float32; orthonormal once they
            are chosen, random before.
        watching: while they are chosen, what passes by.
    """

    lora_xs_U: Tensor
    lora_xs_V: Tensor

    def __init__(self, linear: nn.Linear, config: LoRAXSConfig):
        super().__init__()
        rows, columns = linear.weight.shape
        like: Any = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        p, q = config.size(rows), config.size(columns)
        self.lora_xs_M = nn.Parameter(torch.zeros(p, q, **like))
        self.register_buffer("lora_xs_U", _random(rows, p, linear.weight) / math.sqrt(rows))
        self.register_buffer("lora_xs_V", _random(q, columns, linear.weight) / math.sqrt(columns))
        self.watching: Gradients | None = None

    def after(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        x = args[0]
        inner = F.linear(F.linear(x, self.lora_xs_V.to(x.dtype)), self.lora_xs_M)
        changed = output + F.linear(inner, self.lora_xs_U.to(inner.dtype))
        if self.watching is not None and changed.requires_grad:
            changed.register_hook(lambda g, to=self.watching: to.add(x, g))
        return changed

    def merge(self, module: nn.Linear) -> None:  # type: ignore[override]
        m = self.lora_xs_M
        module.weight.data += self.lora_xs_U.to(m.dtype) @ m @ self.lora_xs_V.to(m.dtype)

    def watch(self) -> None:
        """Begin to collect gradients."""
        sides = len(self.lora_xs_U), self.lora_xs_V.shape[1]
        self.watching = Gradients(*sides, diagonal=False, like=self.lora_xs_M)

    def choose(self) -> None:
        """Take the subspaces from what was collected."""
        assert self.watching is not None
        self.lora_xs_U.copy_(_leading(self.watching.left, self.lora_xs_U.shape[1]))
        self.lora_xs_V.copy_(_leading(self.watching.right, len(self.lora_xs_V)).T)


class InsideTable(Change):
    """Some rows of a table of tokens change inside of a subspace, and with them the output projection
    where that shares the table.

    Attributes:
        lora_xs_M: (P, Q), trained: P rows.
        lora_xs_row: (V,), int32: which row of M a token has, P for none.
        lora_xs_V: (Q, C), as above, fixed; orthonormal once it is chosen, random before.
    """

    lora_xs_row: Tensor
    lora_xs_V: Tensor

    def __init__(self, table: nn.Embedding | nn.Linear, config: LoRAXSConfig):
        super().__init__()
        size, dim = table.weight.shape
        like: Any = {"device": table.weight.device, "dtype": table.weight.dtype}
        p, q = config.size(size), config.size(dim)
        self.lora_xs_M = nn.Parameter(torch.zeros(p, q, **like))
        rows = torch.arange(size, dtype=torch.int32, device=table.weight.device)
        self.register_buffer("lora_xs_row", rows.clamp(max=p))
        self.register_buffer("lora_xs_V", _random(q, dim, table.weight) / math.sqrt(dim))
        self.watching: Gradients | None = None

    def after(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        x, watching = args[0], self.watching
        if isinstance(module, nn.Embedding):
            rows = F.pad(self.lora_xs_M, (0, 0, 0, 1))[self.lora_xs_row[x]]
            changed = output + rows @ self.lora_xs_V.to(rows.dtype)
        else:
            some = F.linear(F.linear(x, self.lora_xs_V.to(x.dtype)), self.lora_xs_M)
            changed = output + F.pad(some, (0, 1)).index_select(-1, self.lora_xs_row)
        if watching is not None and changed.requires_grad:
            add = watching.add_rows if isinstance(module, nn.Embedding) else watching.add
            changed.register_hook(lambda g: add(x, g))
        return changed

    def merge(self, module: nn.Embedding) -> None:  # type: ignore[override]
        rows = F.pad(self.lora_xs_M, (0, 0, 0, 1))[self.lora_xs_row]
        module.weight.data += rows @ self.lora_xs_V.to(rows.dtype)

    def watch(self) -> None:
        """Begin to collect gradients."""
        sides = len(self.lora_xs_row), self.lora_xs_V.shape[1]
        self.watching = Gradients(*sides, diagonal=True, like=self.lora_xs_M)

    def choose(self) -> None:
        """Take rows and subspace from what was collected."""
        assert self.watching is not None
        rows = len(self.lora_xs_M)
        found = self.watching.left.argsort(descending=True, stable=True)[:rows]
        self.lora_xs_row.fill_(rows)
        self.lora_xs_row[found] = torch.arange(rows, dtype=torch.int32, device=found.device)
        self.lora_xs_V.copy_(_leading(self.watching.right, len(self.lora_xs_V)).T)


def _random(rows: int, columns: int, weight: Tensor) -> Tensor:
    """Directions need no float32, and are most of an adapter's file."""
    dtype = torch.bfloat16 if weight.dtype == torch.float32 else weight.dtype
    return torch.randn(rows, columns, device=weight.device).to(dtype)


def _leading(matrix: Tensor, count: int) -> Tensor:
    """Eigenvectors (N, count) of the greatest eigenvalues; float64, since small ones are far below the greatest."""
    exact = matrix.to("cpu" if matrix.device.type == "mps" else matrix.device, torch.float64)
    return torch.linalg.eigh(exact).eigenvectors.flip(1)[:, :count].to(matrix)


class LoRAXS(PeftMethod):
    """Changes in subspaces; those of a tied table are one for all of its ends."""

    lr: ClassVar[float] = 3e-3
    config: LoRAXSConfig

    def adapt(self, model: nn.Module) -> None:
        chosen = adaptable(model, self.config.targets, "lora_xs", tables=True)
        for group in by_weight(model, chosen, (nn.Linear, nn.Embedding)):
            first: Any = next(iter(group.values()))
            table = any(
                isinstance(m, nn.Embedding) or is_output(model, p, m) for p, m in group.items()
            )
            change: Any = (InsideTable if table else Inside)(first, self.config)
            for n, member in enumerate(group.values()):
                change.attach(member, owner=n == 0)

    def fit(
        self, model: nn.Module, batches: Iterable[Any], criterion: Callable[[nn.Module, Any], Any]
    ) -> None:
        """Choose the subspaces.

        Raises:
            UserError: no gradient reaches a map that targets mean.
        """
        own: dict[Any, str] = {}
        for path, _, found in changes(model):
            for change in found:
                if isinstance(change, (Inside, InsideTable)) and change.lora_xs_M.requires_grad:
                    own.setdefault(change, path)
        for change in own:
            change.watch()
        seen = 0
        with evaluating(model):
            for batch in batches:
                loss = criterion(model, batch)
                loss.sum.backward()
                seen += int(loss.count)
                if seen >= self.config.tokens:
                    break
        for change, path in own.items():
            change.lora_xs_M.grad = None
            if change.watching.right.any():
                change.choose()
            elif self.config.targets:
                raise UserError(
                    f"peft.targets: the loss does not depend on {path}, so that lora_xs finds no subspace; "
                    "name other modules"
                )
            change.watching = None

    @classmethod
    def sum(
        cls, parts: list[Any], base: dict[str, Tensor]
    ) -> tuple[LoRAXSConfig, dict[str, Tensor], dict[str, Any]]:
        """The exact sum of changes inside of the same subspaces.

        Raises:
            UserError: settings or subspaces differ.
        """
        first = parts[0].tensors
        fixed = {name: t for name, t in first.items() if not name.endswith("lora_xs_M")}
        if any(
            part.tensors.keys() != first.keys()
            or not all(torch.equal(part.tensors[name], t) for name, t in fixed.items())
            for part in parts
        ):
            raise UserError(
                "peft: adapters of lora_xs have a sum only where their subspaces are the same; "
                "stack them instead"
            )
        summed = {n: sum(p.weight * p.tensors[n] for p in parts) for n in first if n not in fixed}
        return parts[0].settings, {**fixed, **summed}, {}


@mtplug.hookimpl
def register_peft_methods(register):
    register("lora_xs", LoRAXS, LoRAXSConfig)
