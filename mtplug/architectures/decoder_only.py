"""A decoder-only Transformer that translates: source and target are one sequence (Raffel et al. 2020, section 3.2.1, "language
model"), as large language models read a prompt and go on with it.

A row is the source, whose `</s>` separates it from the target, and then the target. There are features of the target
alone, so that only it is learnt.

Shapes: B sentences, K hypotheses of each, S source and T target positions, L = S + T - 1, P columns of the longest source,
C model size, G heads of keys, D head size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mtplug
from mtplug.architectures.base import DecodingState
from mtplug.architectures.layers import PrefixState, StandingCache, Where, for_products
from mtplug.architectures.transformer import cumulative
from mtplug.architectures.transformer_lm import TransformerLM, TransformerLMConfig
from mtplug.errors import UserError
from mtplug.nn.ancestry import Ancestry
from mtplug.nn.positions import PositionEncoding
from mtplug.registry import Selected, choice, component_field

ROOM = 64
"""Columns for hypotheses at first."""
KeysValues = tuple[Tensor, Tensor]  # of one layer, (B, G, P, D) each


@dataclass
class DecoderOnlyConfig(TransformerLMConfig):
    """Decoder-only Transformer that translates: one stack reads the source and goes on with the target."""

    norm: str = choice("pre", "post")
    """layer normalisation before each sublayer, as language models have it, or after each residual sum"""
    position: Selected = component_field("position_encodings", "rope")


class DecoderOnly(TransformerLM):
    """Layers of causal self-attention over source and target.

    Args:
        config: settings.
        task: gives the vocabulary, which is one.

    Raises:
        UserError: there is more than one vocabulary.
    """

    reads_source = True
    joint = True  # False where two tokenizers give the same ids

    def __init__(self, config: DecoderOnlyConfig, task: Any):
        if self.joint and task.source_tokenizer is not task.target_tokenizer:
            raise UserError(
                "architecture decoder_only reads source and target as one sequence of one vocabulary; set tokenizer.joint=true"
            )
        super().__init__(config, task)

    def read(self, source_lengths: Tensor) -> Tensor:
        """(B,) how many tokens of each source stand in front of the target's first."""
        return source_lengths

    def forward(
        self,
        source_tokens: Tensor,
        source_lengths: Tensor,
        prev_output_tokens: Tensor,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        lengths = self.read(source_lengths)
        if target_lengths is not None:
            return self._packed(source_tokens, source_lengths, prev_output_tokens, target_lengths)
        # The first of prev_output_tokens stands for the last of the source.
        given = torch.cat([source_tokens, prev_output_tokens[:, 1:]], 1)
        columns = torch.arange(given.shape[1], device=given.device)
        behind = columns - lengths[:, None]
        gap = source_tokens.shape[1]
        places = torch.where(behind < 0, columns, (gap + behind).clamp(max=given.shape[1] - 1))
        x = self.features(given.gather(1, places), None)
        steps = torch.arange(prev_output_tokens.shape[1], device=x.device)
        wanted = lengths[:, None] - 1 + steps
        return x.gather(1, wanted[..., None].expand(-1, -1, x.shape[2]))

    def _packed(
        self,
        source_tokens: Tensor,
        source_lengths: Tensor,
        prev_output_tokens: Tensor,
        target_lengths: Tensor,
    ) -> Tensor:
        """As `forward` for sentences in one row: in that of the stack, targets follow their sources."""
        device, read = source_tokens.device, self.read(source_lengths)
        lengths = read + target_lengths - 1
        sources, targets = cumulative(source_lengths), cumulative(target_lengths)
        starts = cumulative(lengths)
        borders = starts[:-1] + read
        numbers = torch.arange(len(lengths), device=device)
        of_row = torch.repeat_interleave(numbers, lengths)
        behind = torch.arange(len(of_row), device=device) - borders[of_row]
        places = behind + torch.where(
            behind < 0,
            (sources[:-1] + read)[of_row],
            source_tokens.shape[1] + targets[of_row] + 1,
        )
        x = self.features(torch.cat([source_tokens, prev_output_tokens], 1)[:, places], starts)
        of_target = torch.repeat_interleave(numbers, target_lengths)
        steps = torch.arange(len(of_target), device=device) - targets[of_target]
        return x[:, borders[of_target] - 1 + steps]

    def start(self, source_tokens: Tensor, source_lengths: Tensor) -> PrefixState:
        """All of the source but its last token, which the first step brings."""
        before = self.read(source_lengths) - 1
        size = int(before.max())
        x = self.embed(self.embedding, self.position, source_tokens[:, :size])
        # Sources end in one column, where the target begins.
        columns = torch.arange(size, device=x.device) - (size - before[:, None])
        places = columns.clamp(min=0)[:, None, :, None]
        wheres = [self.where(self.position, n) for n in range(len(self.layers))]
        fronts = []
        layers: Any = self.layers
        for layer, where in zip(layers, wheres, strict=True):
            sublayer = layer.attention
            entered = for_products(sublayer.enter(x))
            k, v = sublayer.body.keys_values(entered)
            fronts.append(
                tuple(t.gather(2, places.expand(-1, t.shape[1], -1, t.shape[3])) for t in (k, v))
            )
            if size:
                change = sublayer.body.attend(entered, k, v, causal=True, **where)
                x = layer.ffn(sublayer.leave(x, change))
        return RowState(wheres, fronts, before, source_tokens.gather(1, before[:, None]))

    def roles(self) -> dict[str, str]:
        # Of the two that it is: vectors of a prompt stand among source tokens.
        return {**super().roles(), "embedding": "encoder.embedding"}

    def extend(self, state: DecodingState, tokens: Tensor) -> Tensor:
        assert isinstance(state, RowState)
        if not state.length:
            tokens = state.begin.expand_as(tokens)
        return super().extend(state, tokens)

    def embed_next(
        self, table: nn.Embedding, position: PositionEncoding, tokens: Tensor, state: PrefixState
    ) -> Tensor:
        assert isinstance(state, RowState)
        x_BKC = table(tokens) * self.embedding_scale
        added = position.embed(0, state.ancestry.size + state.length + 1)
        if added is not None:
            x_BKC = x_BKC + added[state.ancestry.sources + state.length][:, None].to(x_BKC.dtype)
        state.advance(tokens)
        return x_BKC


class SourceAncestry(Ancestry):
    """Hypotheses also look at their sentence's source, the last (B,) `sources` of the columns in front."""

    def __init__(self, sources: Tensor, size: int):
        super().__init__()
        self.sources, self.size = sources, size
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # the same in all layers and steps

    def before(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if count not in self._before:
            self._before[count] = self._columns(count, device)
        return self._before[count]

    def _columns(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        columns = torch.arange(-self.size, 0, device=device)
        hidden = columns < -self.sources[:, None]
        places = columns.expand(len(hidden), -1)
        if added := count - self.size:  # which fine-tuning puts before the source
            prefix = torch.arange(-added, 0, device=device) - self.sources[:, None]
            places = torch.cat([prefix, places], 1)
            hidden = torch.nn.functional.pad(hidden, (added, 0))
        bias = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)
        return places, bias[:, None, None]

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        super().reorder(sentences, parents)
        if len(sentences) != len(self.sources):
            self.sources = self.sources.index_select(0, sentences)
            self._before.clear()


class RowCache(StandingCache):
    """Keys and values of the source in front of those of hypotheses."""

    def __init__(self, where: Where, ancestry: Ancestry, front: KeysValues):
        super().__init__(where, ancestry)
        self.front = front[0].shape[2]
        # `append` would leave room for sixteen times as much.
        self.k, self.v = self.grown(*front, self.front + ROOM)
        self.append(*front)


class RowState(PrefixState):
    """What the layers remember of sources and hypotheses, which stays where it is.

    Args:
        wheres: as of `PrefixState`.
        fronts: of each layer, for the sources without their last tokens; they end in the last column.
        sources: (B,) how many columns are of each source.
        begin: (B, 1) tokens that decoding begins with.
    """

    ancestry: SourceAncestry

    def __init__(self, wheres: Iterable[Where], fronts: list[Any], sources: Tensor, begin: Tensor):
        self.length, self.begin = 0, begin
        self.ancestry = SourceAncestry(sources, fronts[0][0].shape[2])
        self.layers = [RowCache(w, self.ancestry, f) for w, f in zip(wheres, fronts, strict=True)]

    def reorder(self, sentences: Tensor, parents: Tensor) -> None:
        super().reorder(sentences, parents)
        self.begin = self.begin.index_select(0, sentences)


@mtplug.hookimpl
def register_architectures(register):
    register("decoder_only", DecoderOnly, DecoderOnlyConfig)
