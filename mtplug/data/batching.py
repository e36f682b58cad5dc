"""Batches: what they hold, how they are made of sentence pairs, and where a sequence is cut into them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mtplug.data.pairs import Column
from mtplug.data.tokenizers import EOS, PAD


@dataclass
class Batch:
    """Sentence pairs, right-padded. B sentences, S source and T target positions.

    Attributes:
        source_tokens: (B, S) int64, each sentence ended by `</s>`.
        source_lengths: (B,) with `</s>`.
        prev_output_tokens: (B, T) decoder input: `</s>`, then the target shifted right.
        target_tokens: (B, T) int64, ended by `</s>`.
        target_lengths: (B,) with `</s>`.
        ids: (B,) numbers of the sentences, for messages and for restoring an order.
        packed: sentences lie one after another in one row instead: tokens are (1, all).
        aligned: target_tokens (B, S) are labels of the source positions, and padding where there is none.

    A task's `change` may return a dataclass that derives from this one; what it adds has a row for each sentence.
    """

    source_tokens: torch.Tensor
    source_lengths: torch.Tensor
    prev_output_tokens: torch.Tensor
    target_tokens: torch.Tensor
    target_lengths: torch.Tensor
    ids: np.ndarray
    packed: bool = False
    aligned: bool = False

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """What a model is called with."""
        padded = (self.source_tokens, self.source_lengths, self.prev_output_tokens)
        return (*padded, self.target_lengths) if self.packed else padded

    @property
    def padding_mask(self) -> torch.Tensor:
        """(B, S) bool, True where the source is padding; of packed sentences there is none."""
        if self.packed:
            return torch.zeros_like(self.source_tokens, dtype=torch.bool)
        places = torch.arange(self.source_tokens.shape[1], device=self.source_lengths.device)
        return places >= self.source_lengths[:, None]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def target_count(self) -> int:
        """Target tokens, padding not counted."""
        return int(self.target_lengths.sum())

    def halves(self) -> list[Batch]:
        """The same sentences in two batches, where there are two."""
        if len(self) < 2:
            return [self]
        if self.aligned:
            middle = len(self) // 2
            arrays = {k: v for k, v in vars(self).items() if not isinstance(v, bool)}
            cuts = (slice(middle), slice(middle, None))
            return [replace(self, **{k: v[cut] for k, v in arrays.items()}) for cut in cuts]
        rows = []
        for n, (s, t) in enumerate(zip(self.source_lengths, self.target_lengths, strict=True)):
            if self.packed:
                start = int(self.source_lengths[:n].sum()), int(self.target_lengths[:n].sum())
                pair = (self.source_tokens[0, start[0] :], self.target_tokens[0, start[1] :])
            else:
                pair = (self.source_tokens[n], self.target_tokens[n])
            rows.append((pair[0][: s - 1].numpy(), pair[1][: t - 1].numpy()))
        half, make = len(self) // 2, concatenate if self.packed else collate
        made = []
        for cut in (slice(half), slice(half, None)):
            part = vars(make(rows[cut], self.ids[cut]))
            further = {k: v[cut] for k, v in vars(self).items() if k not in part}
            made.append(replace(self, **part, **further))
        return made

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v
            for k, v in vars(self).items()
        }
        return replace(self, **moved)


def collate(pairs: list[tuple[Any, Any]], ids: np.ndarray) -> Batch:
    """A batch of (source ids, target ids)."""
    return padded(*_columns(pairs), ids)


def concatenate(pairs: list[tuple[Any, Any]], ids: np.ndarray) -> Batch:
    """A packed batch of (source ids, target ids)."""
    return packed(*_columns(pairs), ids)


def _columns(pairs: list[tuple[Any, Any]]) -> tuple[Column, Column]:
    source, target = (Column.of([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    return source, target


def padded(source: Column, target: Column, ids: np.ndarray) -> Batch:
    """A batch of B sources and B targets without `</s>`."""
    (source_tokens, source_lengths), (tokens, lengths) = _pad(source), _pad(target)
    prev = torch.full_like(tokens, PAD)
    prev[:, 0] = EOS
    prev[:, 1:] = tokens[:, :-1]
    # the shifted row must not carry the `</s>` of shorter sentences as an input
    beyond = torch.arange(tokens.shape[1])[None, :] >= lengths[:, None]
    prev[beyond] = PAD
    return Batch(source_tokens, source_lengths, prev, tokens, lengths, ids)


def _pad(column: Column) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L) ids padded on the right after an added `</s>`, and lengths (B,)."""
    lengths = column.lengths
    out = np.full((len(lengths), int(lengths.max()) + 1), PAD, np.int64)
    out[np.arange(out.shape[1]) < lengths[:, None]] = column.flat
    out[np.arange(len(lengths)), lengths] = EOS
    return torch.from_numpy(out), torch.from_numpy(lengths + 1)


def packed(source: Column, target: Column, ids: np.ndarray) -> Batch:
    """As `padded`, all sentences in one row."""
    (source_tokens, source_lengths), (tokens, lengths) = _pack(source), _pack(target)
    # Every sentence but the first follows a `</s>`, which is just what starts it.
    prev = torch.roll(tokens, 1, dims=1)
    return Batch(source_tokens, source_lengths, prev, tokens, lengths, ids, packed=True)


def _pack(column: Column) -> tuple[torch.Tensor, torch.Tensor]:
    count, lengths = len(column), column.lengths
    out = np.full((1, len(column.flat) + count), EOS, np.int64)
    out[0, np.arange(len(column.flat)) + np.repeat(np.arange(count), lengths)] = column.flat
    return torch.from_numpy(out), torch.from_numpy(lengths + 1)


def sentences(batch: Batch, side: str) -> list[np.ndarray]:
    """The ids of each sentence of a batch's source or target, without `</s>`."""
    tokens, lengths = getattr(batch, f"{side}_tokens"), getattr(batch, f"{side}_lengths").tolist()
    rows = tokens[0].split(lengths) if batch.packed else tokens
    return [row[: length - 1].numpy() for row, length in zip(rows, lengths, strict=True)]


def collate_aligned(inputs: list[Any], labels: list[Any], ids: np.ndarray) -> Batch:
    """A batch of source ids and of as many labels, which are padding where there is none.

    There may be one label more, for the `</s>`.
    """
    source, lengths = _pad(Column.of(inputs, np.int64))
    target = torch.full_like(source, PAD)
    for row, own in zip(target, labels, strict=True):
        row[: len(own)] = torch.from_numpy(np.asarray(own, np.int64))
    return Batch(source, lengths, source, target, lengths, ids, aligned=True)


def token_batches(
    order: np.ndarray,
    source_lengths: np.ndarray,
    target_lengths: np.ndarray,
    max_tokens: int,
    packing: bool = False,
    max_sentences: int = 0,
) -> list[np.ndarray]:
    """Cut `order` into runs of at most `max_sentences` (0: any number) whose size stays in bounds.

    The size is sentences times the longest side, or with `packing` the tokens of the longer side.
    """
    most = max_sentences or len(order)
    if packing:
        return _packed_batches(order, source_lengths + 1, target_lengths + 1, max_tokens, most)
    longest = np.maximum(source_lengths, target_lengths)[order] + 1
    batches, start, widest = [], 0, 0
    for position, length in enumerate(longest.tolist()):
        widest = max(widest, length)
        count = position - start + 1
        if count > 1 and (widest * count > max_tokens or count > most):
            batches.append(order[start:position])
            start, widest = position, length
    if start < len(order):
        batches.append(order[start:])
    return batches


def _packed_batches(
    order, source_lengths, target_lengths, max_tokens: int, most: int
) -> list[np.ndarray]:
    batches, start, sides = [], 0, (0, 0)
    rows = zip(source_lengths[order].tolist(), target_lengths[order].tolist(), strict=True)
    for position, (source, target) in enumerate(rows):
        sides = (sides[0] + source, sides[1] + target)
        if position > start and (max(sides) > max_tokens or position - start == most):
            batches.append(order[start:position])
            start, sides = position, (source, target)
    if start < len(order):
        batches.append(order[start:])
    return batches
