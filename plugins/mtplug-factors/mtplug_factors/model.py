"""A Transformer whose source embeddings are made of those of a piece and of its word's factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.architectures import Transformer, TransformerConfig
from mtplug.architectures.embeddings import embedding
from mtplug.data.tokenizers import pieces_of
from mtplug.errors import UserError
from mtplug.registry import choice
from mtplug.tasks.sized import Sized, SizedTask
from mtplug_factors.tokenizer import Factored


@dataclass
class FactoredTransformerConfig(TransformerConfig):
    """Transformer that reads words with factors (Sennrich and Haddow 2016)."""

    combine: str = choice("concat", "sum")
    """of the embeddings of a piece and its factors; concat: as in the paper, that of the piece is smaller by as much"""
    factor_dim: int = 16
    """concat: size of the embedding of each factor"""
    tie_embeddings: str = choice("decoder", "none")
    """decoder: target and output share one table"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor_dim < 1:
            raise ValueError(f"factor_dim must be at least 1, not {self.factor_dim}")


@dataclass(frozen=True)
class Layout:
    """How the ids of a source tokenizer are made: V pieces, the values of each factor (that of text without factors
    counted), and ids behind these, such as language tags."""

    pieces: int
    values: tuple[int, ...]
    more: int = 0

    @classmethod
    def of(cls, tokenizer: Any) -> Layout | None:
        """None if it has no factors."""
        one = tokenizer
        while not isinstance(one, Factored):
            if not hasattr(one, "inner"):
                return None
            one = one.inner
        return cls(len(one.inner), tuple(one.sizes), len(tokenizer) - len(one))


class FactoredEmbedding(nn.Module):
    """(…, L) ids to (…, L, C). Value 0 of a factor adds nothing.

    Args:
        layout: of the ids.
        dim: C.
        factor_dim: of the embedding of a factor, which stands behind that of the piece; 0: they have C and are added.

    Raises:
        UserError: there is no room for pieces.
    """

    def __init__(self, layout: Layout, dim: int, factor_dim: int):
        super().__init__()
        self.layout, self.sum = layout, not factor_dim
        width = dim - factor_dim * len(layout.values)
        if width < 1:
            raise UserError(
                f"architecture.factor_dim: {len(layout.values)} factors of {factor_dim} leave no room for words in dim {dim}"
            )
        self.pieces = _table(layout.pieces + layout.more, width, dim)
        self.factors = nn.ModuleList(_table(n, factor_dim or dim, dim) for n in layout.values)

    def forward(self, ids: Tensor) -> Tensor:
        v = self.layout.pieces
        piece, rest = ids % v, ids // v
        if self.layout.more:  # what is behind has the last rows, and no factors
            behind = ids - v * math.prod(self.layout.values)
            piece = torch.where(behind < 0, piece, behind + v)
            rest = rest.masked_fill(behind >= 0, 0)
        parts = [self.pieces(piece)]
        for table, count in zip(self.factors, self.layout.values, strict=True):
            parts.append(table(rest % count))
            rest = rest // count
        return torch.stack(parts).sum(0) if self.sum else torch.cat(parts, -1)


def _table(size: int, width: int, dim: int) -> nn.Embedding:
    """Of variance 1/dim, whatever its width."""
    made = embedding(size, width)
    with torch.no_grad():
        made.weight *= math.sqrt(width / dim)
    return made


class FactoredTransformer(Transformer):
    takes_factors = True

    def __init__(self, config: FactoredTransformerConfig, task: Any):
        source = task.source_tokenizer
        # Of a tokenizer that is not there yet, one factor stands for all.
        unknown = Layout(len(source), (1,) if isinstance(source, Sized) else ())
        layout = Layout.of(source) or unknown
        sizes = SizedTask(layout.pieces)
        sizes.target_tokenizer = task.target_tokenizer
        super().__init__(config, sizes)
        size = 0 if config.combine == "sum" else config.factor_dim
        self.encoder_embedding: Any = FactoredEmbedding(layout, config.dim, size)

    def table_pieces(self, tokenizer: Any) -> dict[str, list[str]]:
        """What the rows of the source's tables are for; values are in angle brackets, so that a new one starts fresh."""
        if Layout.of(tokenizer) is None:
            return {"encoder_embedding.pieces.weight": pieces_of(tokenizer)}
        one = tokenizer
        while not isinstance(one, Factored):
            one = one.inner
        behind = [tokenizer.tokens([i])[0] for i in range(len(one), len(tokenizer))]
        found = {"encoder_embedding.pieces.weight": [*pieces_of(one.inner), *behind]}
        for n, values in enumerate(one.values.values()):
            named = ["<>", *(f"<{value}>" for value in values)]
            found[f"encoder_embedding.factors.{n}.weight"] = named
        return found

    def describe(self, device: torch.device, packing: bool = False) -> list[str]:
        if not self.encoder_embedding.factors:
            raise UserError(
                "architecture.name: factored_transformer reads words with factors; with it, take tokenizer.name=factored"
            )
        return super().describe(device, packing)

    def roles(self) -> dict[str, str]:
        found = super().roles()
        found["encoder_embedding.pieces"] = found.pop("encoder_embedding")
        return found
