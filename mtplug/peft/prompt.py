"""Prompt tuning (Lester et al. 2021): learned vectors before the embeddings of the source.

Shapes: B sentences, S source positions, P prompt length, C model size, V rows of the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import mtplug
from mtplug.architectures.base import DecodingState
from mtplug.errors import UserError
from mtplug.peft.base import Change, PeftMethod, become
from mtplug.peft.targets import matched, roles_of
from mtplug.registry import require_range


@dataclass
class PromptTuningConfig:
    """Learned vectors that stand before each source sentence."""

    length: int = 20
    """vectors"""
    targets: tuple[str, ...] = ()
    """the table of source tokens, by role, path or pattern; none: that of role `encoder.embedding`"""

    def __post_init__(self) -> None:
        require_range(self, 1, math.inf, "length")


class Prompt(Change):
    """Gives a table of V tokens further rows V, V + 1, …, V + P − 1."""

    def __init__(self, table: nn.Embedding, length: int):
        super().__init__()
        # Real rows are the best start among those that the paper compares (section 3.2).
        rows = torch.randint(3, table.num_embeddings, (length,), device=table.weight.device)
        self.prompt = nn.Parameter(table.weight.detach()[rows].clone())
        self.first = table.num_embeddings
        self._row: Tensor | None = None

    def before(self, module: nn.Module, args: tuple) -> tuple:
        self._row = args[0] - self.first
        return (args[0].masked_fill(self._row >= 0, 0), *args[1:])

    def after(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        row, self._row = self._row, None
        assert row is not None
        return torch.where((row >= 0)[..., None], self.prompt[row.clamp(min=0)], output)

    def put(self, source_tokens: Tensor, source_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) and (B,) with the prompt's tokens in front; as they are if they have them already."""
        if not len(source_tokens) or int(source_tokens[0, 0]) >= self.first:
            return source_tokens, source_lengths
        length = len(self.prompt)
        ids = torch.arange(self.first, self.first + length, device=source_tokens.device)
        front = ids.expand(len(source_tokens), length)
        return torch.cat([front, source_tokens], 1), source_lengths + length


class Prompted:
    """For a model whose source sentences begin with a prompt."""

    takes_packed = False
    prompts: list[Prompt]
    aligned: bool

    def _put(self, source_tokens: Tensor, source_lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.prompts[0].put(source_tokens, source_lengths)

    def forward(self, source_tokens: Tensor, source_lengths: Tensor, *rest: Any) -> Tensor:
        out = super().forward(*self._put(source_tokens, source_lengths), *rest)  # type: ignore[misc]
        # An aligned model tells something of each source token, and nobody asks of the prompt's.
        return out[:, -source_tokens.shape[1] :] if self.aligned else out

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> DecodingState:
        return super().start(*self._put(source_tokens, source_lengths))  # type: ignore[misc]

    def cross_attention(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor | None:
        """Over the real tokens."""
        put = self._put(source_tokens, source_lengths)
        weights = super().cross_attention(*put, prev_output_tokens)  # type: ignore[misc]
        if weights is None:
            return None
        weights = weights[..., -source_tokens.shape[1] :]
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)


class PromptTuning(PeftMethod):
    """A prompt before the source; sentences are padded, not packed."""

    lr: ClassVar[float] = 3e-2
    config: PromptTuningConfig

    def adapt(self, model: nn.Module) -> None:
        if isinstance(model, Prompted):
            raise UserError("peft.name=prompt_tuning: the base has a prompt already")
        if not (getattr(model, "autoregressive", True) or getattr(model, "aligned", False)):
            raise UserError(
                f"peft.name=prompt_tuning: {type(model).__name__} is learnt and searched by parts of its own, which a "
                "prompt is not put into; use another method"
            )
        targets = self.config.targets or ("encoder.embedding",)
        if not self.config.targets and "encoder.embedding" not in roles_of(model).values():
            raise UserError(
                "peft.targets: this architecture has no encoder.embedding among its roles; name the table "
                "of source tokens"
            )
        chosen = matched(model, targets, (nn.Embedding,), "peft.targets")
        if len(chosen) > 1:
            raise UserError(f"peft.targets: {' and '.join(chosen)}: prompt_tuning takes one table")
        (table,) = chosen.values()
        prompt = Prompt(table, self.config.length)  # type: ignore[arg-type]
        prompt.attach(table)
        become(model, Prompted)
        # In a list, so that the model does not hold it a second time.
        model.prompts = [prompt]  # type: ignore[assignment]


@mtplug.hookimpl
def register_peft_methods(register):
    register("prompt_tuning", PromptTuning, PromptTuningConfig)
