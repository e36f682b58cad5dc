"""Architecture `nllb`: a Transformer whose decoder is told the language to write, after `</s>`.

fairseq's multilingual models begin each target with a language code, which is given, not searched. Here it is no token of
the target: the model puts it in front by itself, so that losses, scores and lengths count what is written.
Of a run with several directions, sources bring the code of their target, which the encoder does not see.
Shapes: B sentences, K hypotheses of each, S source and T target positions, C model size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtplug.architectures.base import DecodingState
from mtplug.architectures.transformer import TransformerConfig, TransformerState
from mtplug.data.tokenizers import EOS, PAD, Wrapper
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


class ToldState(TransformerState):
    """And which language to write, if sentences differ in it: (B, 1) codes."""

    codes: Tensor | None = None

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        super().reorder(sentences, parents)
        if self.codes is not None:
            self.codes = self.codes.index_select(0, sentences)


class NllbTransformer(SharedTable):
    """The code is that of the target's tokenizer, if it has one; or each sentence has its own, if the source's tokenizer is one
    of both languages."""

    takes_packed = False

    def __init__(self, config: NllbConfig, task: Any):
        super().__init__(config, task)
        self.size = len(task.source_tokenizer)
        self.several = getattr(_innermost(task.source_tokenizer), "of_both", False)
        code = getattr(_innermost(task.target_tokenizer), "code", None)
        self.code: int | None = None if self.several else code
        if self.several or code is not None:  # which takes a position of the decoder
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

    def _without_code(
        self, source_tokens: Tensor, source_lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sources that bring the code of their target, without it: (B, S - 1) tokens, (B,) lengths, (B, 1) codes, and the (B, S - 1)
        places where the tokens were. An empty source has no code, and stays as it is."""
        if source_tokens.shape[1] == 1:
            source_tokens = nn.functional.pad(source_tokens, (0, 1), value=PAD)
        # In front of it there may be rows that a prompt adds to the vocabulary.
        at = (source_tokens < self.size).int().argmax(1)
        empty = at == source_lengths - 1
        columns = torch.arange(source_tokens.shape[1] - 1, device=at.device)
        gap = at.masked_fill(empty, len(columns))
        places = columns + (columns >= gap[:, None])
        codes = source_tokens.gather(1, at[:, None])
        return source_tokens.gather(1, places), source_lengths - 1 + empty, codes, places

    def _told(self, tokens: Tensor, codes: Tensor | int | None) -> Tensor:
        """Decoder input whose `</s>`, which is at its start only, is the code instead."""
        return tokens if codes is None else torch.where(tokens == EOS, codes, tokens)

    def forward(
        self,
        source_tokens: Tensor,
        source_lengths: Tensor,
        prev_output_tokens: Tensor,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        codes: Tensor | int | None = self.code
        if self.several:
            source_tokens, source_lengths, codes, _ = self._without_code(
                source_tokens, source_lengths
            )
        if codes is None:
            return super().forward(source_tokens, source_lengths, prev_output_tokens)
        start = torch.full_like(prev_output_tokens[:, :1], EOS)
        given = torch.cat([start, self._told(prev_output_tokens, codes)], 1)
        return super().forward(source_tokens, source_lengths, given)[:, 1:]

    def cross_attention(
        self, source_tokens: Tensor, source_lengths: Tensor, prev_output_tokens: Tensor
    ) -> Tensor:
        weights = super().cross_attention(source_tokens, source_lengths, prev_output_tokens)
        if self.code is None and not self.several:
            return weights
        weights = weights[:, 1:]
        if not self.several:
            return weights
        # Nothing looks at the target's code, which has its place among the source's tokens all the same.
        *_, places = self._without_code(source_tokens, source_lengths)
        rows, length = weights.shape[:2]
        whole = weights.new_zeros(rows, length, places.shape[1] + 1)
        whole = whole.scatter(2, places[:, None].expand(-1, length, -1), weights)
        return whole[..., : source_tokens.shape[1]]

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> TransformerState:
        codes = None
        if self.several:
            source_tokens, source_lengths, codes, _ = self._without_code(
                source_tokens, source_lengths
            )
        state = super().start(source_tokens, source_lengths)
        assert isinstance(state, ToldState)
        state.codes = codes
        if self.several or self.code is not None:
            super().extend(state, torch.full_like(source_tokens[:, :1], EOS))
        return state

    def state(self, *args: Any) -> ToldState:
        return ToldState(*args)

    def extend(self, state: DecodingState, tokens: Tensor) -> Tensor:
        codes = state.codes if self.several and isinstance(state, ToldState) else self.code
        return super().extend(state, self._told(tokens, codes))

    def roles(self) -> dict[str, str]:
        found = super().roles()
        if self.config.norm_embeddings:  # type: ignore[attr-defined]
            found |= {f"{s}_embedding_norm": f"{s}.norm" for s in self.stacks}
        return found


def _innermost(tokenizer: Any) -> Any:
    while isinstance(tokenizer, Wrapper):
        tokenizer = tokenizer.inner
    return tokenizer
