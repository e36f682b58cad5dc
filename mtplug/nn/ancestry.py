"""Self-attention of hypotheses that share their past.

A search keeps choosing which hypotheses go on, and from which. Instead of moving keys and values with them,
those of a sentence stay where they were written, one column for each hypothesis and step, and each hypothesis
looks at the columns of its ancestors. What a step costs is then reading the columns once; those without living
descendants, which soon are most, are dropped now and then.

Shapes: B sentences, K hypotheses of each, J columns so far, P columns before those, H heads, D head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mtplug.nn.attention import AttentionBackend
from mtplug.nn.plain import weigh

FIRST = 32  # columns of a hypothesis before any is dropped


class Ancestry(AttentionBackend):
    """Which columns each hypothesis descends from; attention over them.

    Attributes:
        kept: (B, J) columns that the last `reorder` left, all others being nobody's; None: all are left.
    """

    takes_grouped = True

    def __init__(self) -> None:
        self.length = 0  # steps so far
        self.kept: Tensor | None = None
        self._steps: Tensor | None = None  # (B or 1, J) the number of the step that wrote a column
        self._seen: Tensor | None = None  # (B, K, J) bool; None while everyone sees everything
        self._bias: Tensor | None = None  # (B, 1, K, J), 0 or -inf
        self._limit = 0  # columns from which on it is worth while to look for some to drop

    def advance(self, tokens: Tensor) -> None:
        """A step begins: each of (B, K) hypotheses gets a column, which it sees.

        Args:
            tokens: of that shape.
        """
        (sentences, width), device = tokens.shape, tokens.device
        if self._steps is None:
            self._steps = torch.empty(1, 0, dtype=torch.long, device=device)
        new = self._steps.new_full((len(self._steps), width), self.length)
        self._steps = torch.cat([self._steps, new], 1)
        self.length += 1
        if self._seen is None:
            return
        own = torch.eye(width, dtype=torch.bool, device=device).expand(sentences, -1, -1)
        self._seen = torch.cat([self._seen, own], 2)
        self._bias = torch.zeros(self._seen.shape, device=device)
        self._bias = self._bias.masked_fill_(~self._seen, -math.inf)[:, None]

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        """As `DecodingState.reorder` has it."""
        self.kept = None
        if self._seen is not None and self._steps is not None:
            self._seen = self._seen.flatten(0, 1)[parents]
            if len(self._steps) > 1:
                self._steps = self._steps[sentences]
            self._drop()
        elif parents.shape[1] > 1:
            self._seen = parents.new_ones((*parents.shape, self.length), dtype=torch.bool)

    def _drop(self) -> None:
        """Forget columns that nobody descends from, when they may be half of them or more."""
        assert self._seen is not None and self._steps is not None
        _, width, columns = self._seen.shape
        self._limit = max(self._limit, FIRST * width)
        if columns < self._limit:
            return
        used = self._seen.any(1)
        count = int(used.sum(1).max())
        self._limit = 2 * count
        if columns < self._limit:
            return
        # Rows that use fewer keep some that nobody sees.
        self.kept = used.int().sort(dim=1, descending=True, stable=True).indices[:, :count]
        self._seen = self._seen.gather(2, self.kept[:, None].expand(-1, width, -1))
        self._steps = self._steps.expand(len(used), -1).gather(1, self.kept)

    def before(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Of the `count` columns before those of steps: their positions (B or 1, count), that of the first step being 0; and a
        bias (B, 1, 1, count), 0 or -inf, where not everyone sees all."""
        return torch.arange(-count, 0, device=device)[None], None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, position: Any = (), query_offset: int = 0,
        scale: float | None = None, **_: Any,
    ) -> Tensor:  # fmt: skip
        """(B, H, K, D) over (B, H, P + J, D); `query_offset` is P, of which `before` says who sees them."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        bias = self._bias
        before, hidden = self.before(query_offset, q.device) if query_offset else (None, None)
        if bias is not None and query_offset:
            bias = torch.nn.functional.pad(bias, (query_offset, 0))
        if hidden is not None:
            hidden = torch.nn.functional.pad(hidden, (0, k.shape[2] - query_offset))
            bias = hidden if bias is None else hidden + bias
        if position:
            from mtplug.nn.schemes import with_positions  # needs mtplug_kernels, as schemes do

            assert self._steps is not None
            j = self._steps
            if before is not None:
                rows = max(len(before), len(j))
                j = torch.cat([before.expand(rows, -1), j.expand(rows, -1)], 1)
            i = j.new_full((len(j), q.shape[2]), self.length - 1)
            q, k, of_distance = with_positions(q, k, position, i, j, scale)
            if of_distance is not None:
                bias = of_distance if bias is None else bias + of_distance
        return weigh(q, k, v, bias, scale)
