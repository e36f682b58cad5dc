"""Self-attention of hypotheses that share their past.

A search keeps choosing which hypotheses go on, and from which. Instead of moving keys and values with them,
those of a sentence stay where they were written, one column for each hypothesis and step, and each hypothesis
looks at the columns of its ancestors. What a step costs is then reading the columns once.

Shapes: B sentences, K hypotheses of each, J columns so far, P columns before those, H heads, D head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from mtplug_kernels.positions import as_schemes
from torch import Tensor

from mtplug.nn.attention import AttentionBackend
from mtplug.nn.plain import weigh, with_positions


class Ancestry(AttentionBackend):
    """Which columns each hypothesis descends from; attention over them.

    Attributes:
        length: steps so far.
    """

    def __init__(self) -> None:
        self.length = 0
        self._steps: list[Tensor] = []  # (K,) for each step, its number
        self._seen: Tensor | None = None  # (B, K, J) bool; None while everyone sees everything
        self._bias: Tensor | None = None  # (B, 1, K, J), 0 or -inf

    def advance(self, tokens: Tensor) -> None:
        """A step begins: each of (B, K) hypotheses gets a column, which it sees.

        Args:
            tokens: of that shape.
        """
        sentences, width = tokens.shape
        self._steps.append(torch.full((width,), self.length, device=tokens.device))
        self.length += 1
        if self._seen is None:
            return
        own = torch.eye(width, dtype=torch.bool, device=tokens.device).expand(sentences, -1, -1)
        self._seen = torch.cat([self._seen, own], 2)
        self._bias = torch.zeros(self._seen.shape, device=tokens.device)
        self._bias = self._bias.masked_fill_(~self._seen, -math.inf)[:, None]

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        """As `DecodingState.reorder` has it."""
        if self._seen is not None:
            self._seen = self._seen.flatten(0, 1)[parents]
        elif parents.shape[1] > 1:
            self._seen = torch.ones(
                *parents.shape, self.length, dtype=torch.bool, device=parents.device
            )

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, position: Any = (), query_offset: int = 0,
        scale: float | None = None, **_: Any,
    ) -> Tensor:  # fmt: skip
        """(B, H, K, D) over (B, H, P + J, D); `query_offset` is P, and everyone sees the P first."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        bias = self._bias
        if bias is not None and query_offset:
            bias = torch.nn.functional.pad(bias, (query_offset, 0))
        if position:
            j = torch.cat([torch.arange(-query_offset, 0, device=q.device), *self._steps])[None]
            i = j.new_full((1, q.shape[2]), self.length - 1)
            q, k, of_distance = with_positions(q, k, as_schemes(position), i, j, scale)
            if of_distance is not None:
                bias = of_distance if bias is None else bias + of_distance
        return weigh(q, k, v, bias, scale)
