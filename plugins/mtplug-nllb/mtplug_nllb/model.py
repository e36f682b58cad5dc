"""Architecture `nllb`: a Transformer whose decoder is told the language to write, after `</s>`.

fairseq's multilingual models begin each target with a language code, which is given, not searched. Here it is no token of
the target: the model puts it in front by itself, so that losses, scores and lengths count what is written.
Shapes: B sentences, S source and T target positions, C model size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.architectures.base import DecodingState
from mtplug.architectures.transformer import TransformerConfig, TransformerState
from mtplug.data.tokenizers import EOS, Wrapper
from mtplug.exporting.marian_model import SharedTable
from mtplug.nn.positions import PositionEncoding, Sinusoidal

FIRST = 2
"""fairseq's number of a sentence's first position."""


class FairseqSinusoidal(Sinusoidal):
    """Sinusoids as fairseq has them: other frequencies than Vaswani et al.'s, all sines first, positions from 2 on."""

    def _table(self, size: int) -> Tensor:
        half, device = self.dim // 2, self.table.device
        frequencies = torch.exp(
            torch.arange(half, device=device) * -(math.log(10000.0) / max(half - 1, 1))
        )
        angles = torch.arange(FIRST, FIRST + size, device=device)[:, None] * frequencies
        table = torch.cat([angles.sin(), angles.cos()], 1)
        return nn.functional.pad(table, (0, self.dim - 2 * half))


@dataclass
class NllbConfig(TransformerConfig):
    """Transformer of NLLB-200, M2M-100 and mBART-50."""

    norm_embeddings: bool = False
    """layer normalisation of embeddings and positions, as mBART has it"""


class NllbTransformer(SharedTable):
    """The code is that of the target's tokenizer, if it has one."""

    takes_packed = False

    def __init__(self, config: NllbConfig, task: Any):
        super().__init__(config, task)
        self.code = _code(task.target_tokenizer)
        if self.code is not None:  # which takes a position of the decoder
            self.decoder_position.limit -= 1
        self.encoder_embedding_norm = self._embedding_norm(config)
        self.decoder_embedding_norm = self._embedding_norm(config)

    @staticmethod
    def _embedding_norm(config: NllbConfig) -> nn.Module:
        return nn.LayerNorm(config.dim) if config.norm_embeddings else nn.Identity()

    def placed(
        self, table: nn.Embedding, position: PositionEncoding, tokens: Tensor, start: int = 0,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        x = super().placed(table, position, tokens, start, cu_seqlens)
        decodes = position is self.decoder_position
        return self.decoder_embedding_norm(x) if decodes else self.encoder_embedding_norm(x)

    def _told(self, tokens: Tensor) -> Tensor:
        """Decoder input whose `</s>`, which is at its start only, is the code instead."""
        return tokens if self.code is None else torch.where(tokens == EOS, self.code, tokens)

    def forward(
        self,
        source_tokens: Tensor,
        source_lengths: Tensor,
        prev_output_tokens: Tensor,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        if self.code is None:
            return super().forward(source_tokens, source_lengths, prev_output_tokens)
        start = torch.full_like(prev_output_tokens[:, :1], EOS)
        given = torch.cat([start, self._told(prev_output_tokens)], 1)
        return super().forward(source_tokens, source_lengths, given)[:, 1:]

    def cross_attention(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        weights = super().cross_attention(source_tokens, source_lengths, prev_output_tokens)
        return weights if self.code is None else weights[:, 1:]

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> TransformerState:
        state = super().start(source_tokens, source_lengths)
        if self.code is not None:
            super().extend(state, torch.full_like(source_tokens[:, :1], EOS))
        return state

    def extend(self, state: DecodingState, tokens: Tensor) -> Tensor:
        return super().extend(state, self._told(tokens))

    def roles(self) -> dict[str, str]:
        found = super().roles()
        if self.config.norm_embeddings:  # type: ignore[attr-defined]
            found |= {f"{s}_embedding_norm": f"{s}.norm" for s in self.stacks}
        return found


def _code(tokenizer: Any) -> int | None:
    while isinstance(tokenizer, Wrapper):
        tokenizer = tokenizer.inner
    return getattr(tokenizer, "code", None)
