"""What Transformers of other toolkits have and ours lacks, for plugins that read their models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.architectures.transformer import TransformerConfig
from mtplug.data.tokenizers import EOS
from mtplug.exporting.marian_model import SharedTable
from mtplug.nn.positions import PositionEncoding
from mtplug.registry import require_range


@dataclass
class ForeignConfig(TransformerConfig):
    """Transformer of another toolkit."""

    start: int = EOS
    """id of the token that decoding begins with"""
    norm_eps: float = 1e-6
    """what is added to the variance in layer normalisations"""
    scale_embeddings: bool = True
    """embeddings are multiplied by √dim"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, 0, math.inf, "start", "norm_eps")


class ForeignTransformer(SharedTable):
    """Decoding begins with a token of the vocabulary that is not `</s>`, such as `<s>`."""

    config: ForeignConfig

    def __init__(self, config: ForeignConfig, task: Any):
        super().__init__(config, task)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.norm_eps

    def embed(
        self, table: nn.Embedding, position: PositionEncoding, tokens: Tensor, start: int = 0,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if position is self.decoder_position:  # decoder input has `</s>` at its start only
            tokens = torch.where(tokens == EOS, self.config.start, tokens)
        if self.config.scale_embeddings:
            return super().embed(table, position, tokens, start, cu_seqlens)

        def looked_up(ids: Tensor) -> Tensor:
            return table(ids) / math.sqrt(self.config.dim)

        return super().embed(looked_up, position, tokens, start, cu_seqlens)  # type: ignore[arg-type]
