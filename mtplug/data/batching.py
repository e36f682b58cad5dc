"""Batches by tokens: sentences of like length together, in an order that the seed alone decides.

The order of an epoch is a function of seed and epoch, so a position in the data is two numbers: the
epoch and how many sentences of it were used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mtplug.data.store import Store
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
        return [make(rows[:half], self.ids[:half]), make(rows[half:], self.ids[half:])]

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v
            for k, v in vars(self).items()
        }
        return Batch(**moved)


def pad(rows: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Id sequences as a (B, L) tensor padded on the right after an added `</s>`, and lengths."""
    lengths = np.fromiter((len(r) + 1 for r in rows), np.int64, len(rows))
    out = np.full((len(rows), int(lengths.max())), PAD, np.int64)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
        row[len(ids)] = EOS
    return torch.from_numpy(out), torch.from_numpy(lengths)


def collate(pairs: list[tuple[Any, Any]], ids: np.ndarray) -> Batch:
    """A batch of (source ids, target ids)."""
    source, source_lengths = pad([p[0] for p in pairs])
    target, target_lengths = pad([p[1] for p in pairs])
    prev = torch.full_like(target, PAD)
    prev[:, 0] = EOS
    prev[:, 1:] = target[:, :-1]
    # the shifted row must not carry the `</s>` of shorter sentences as an input
    beyond = torch.arange(target.shape[1])[None, :] >= target_lengths[:, None]
    prev[beyond] = PAD
    return Batch(source, source_lengths, prev, target, target_lengths, ids)


def concatenate(pairs: list[tuple[Any, Any]], ids: np.ndarray) -> Batch:
    """A packed batch of (source ids, target ids)."""
    end = np.array([EOS])
    sides = []
    for side in (0, 1):
        rows = [np.concatenate([pair[side], end]) for pair in pairs]
        tokens = torch.from_numpy(np.concatenate(rows).astype(np.int64))[None]
        sides.append((tokens, torch.tensor([len(row) for row in rows])))
    (source, source_lengths), (target, target_lengths) = sides
    # Every sentence but the first follows a `</s>`, which is just what starts it.
    prev = torch.roll(target, 1, dims=1)
    return Batch(source, source_lengths, prev, target, target_lengths, ids, packed=True)


def sentences(batch: Batch, side: str) -> list[np.ndarray]:
    """The ids of each sentence of a batch's source or target, without `</s>`."""
    tokens, lengths = getattr(batch, f"{side}_tokens"), getattr(batch, f"{side}_lengths").tolist()
    rows = tokens[0].split(lengths) if batch.packed else tokens
    return [row[: length - 1].numpy() for row, length in zip(rows, lengths, strict=True)]


def collate_aligned(inputs: list[Any], labels: list[Any], ids: np.ndarray) -> Batch:
    """A batch of source ids and of as many labels, which are padding where there is none.

    There may be one label more, for the `</s>`.
    """
    source, lengths = pad(inputs)
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
) -> list[np.ndarray]:
    """Cut `order` into runs whose size stays in bounds.

    The size is sentences times the longest side, or with `packing` the tokens of the longer side.
    """
    if packing:
        return _packed_batches(order, source_lengths + 1, target_lengths + 1, max_tokens)
    longest = np.maximum(source_lengths, target_lengths)[order] + 1
    batches, start, widest = [], 0, 0
    for position, length in enumerate(longest.tolist()):
        widest = max(widest, length)
        if position > start and widest * (position - start + 1) > max_tokens:
            batches.append(order[start:position])
            start, widest = position, length
    if start < len(order):
        batches.append(order[start:])
    return batches


def _packed_batches(order, source_lengths, target_lengths, max_tokens: int) -> list[np.ndarray]:
    batches, start, sides = [], 0, (0, 0)
    rows = zip(source_lengths[order].tolist(), target_lengths[order].tolist(), strict=True)
    for position, (source, target) in enumerate(rows):
        sides = (sides[0] + source, sides[1] + target)
        if position > start and max(sides) > max_tokens:
            batches.append(order[start:position])
            start, sides = position, (source, target)
    if start < len(order):
        batches.append(order[start:])
    return batches


class TrainingData:
    """An endless sequence of training batches over one or several stores.

    Args:
        stores: one for each corpus.
        weights: how often each corpus is seen in an epoch: 1.5 means every sentence once and half
            of them twice, chosen anew in each epoch.
        max_tokens: see `token_batches`.
        seed: decides the order.
        packing: put sentences one after another instead of padding them.
    """

    def __init__(
        self,
        stores: list[Store],
        weights: list[float],
        max_tokens: int,
        seed: int,
        packing: bool = False,
    ):
        self.stores, self.weights = stores, weights
        self.max_tokens, self.seed, self.packing = max_tokens, seed, packing
        self.starts = np.cumsum([0, *map(len, stores)])
        lengths = [s.lengths() for s in stores]
        self.source_lengths = np.concatenate([x[0] for x in lengths])
        self.target_lengths = np.concatenate([x[1] for x in lengths])
        self.epoch, self.offset = 1, 0

    def state(self) -> dict[str, int]:
        """Where to go on: the epoch and the sentences of it already used."""
        return {"epoch": self.epoch, "sample_offset": self.offset}

    def restore(self, state: dict[str, int]) -> None:
        self.epoch, self.offset = state["epoch"], state["sample_offset"]

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, as arrays of sentence numbers."""
        rng = np.random.default_rng([self.seed, epoch])
        parts = []
        for start, store, weight in zip(self.starts, self.stores, self.weights, strict=False):
            everyone = np.arange(start, start + len(store))
            whole, rest = int(weight), weight - int(weight)
            parts += [everyone] * whole
            if rest:
                parts.append(rng.permutation(everyone)[: round(rest * len(store))])
        order = rng.permutation(np.concatenate(parts))
        # A stable sort of a random order: equal lengths meet in new company each epoch. A little
        # noise on the lengths does the same for lengths that few sentences share.
        noise = rng.uniform(0, 1, len(order))
        longest = np.maximum(self.source_lengths, self.target_lengths)[order]
        order = order[np.lexsort((self.source_lengths[order] + noise, longest))]
        batches = token_batches(
            order, self.source_lengths, self.target_lengths, self.max_tokens, self.packing
        )
        return [batches[i] for i in rng.permutation(len(batches))]

    def batch(self, ids: np.ndarray) -> Batch:
        which = np.searchsorted(self.starts, ids, side="right") - 1
        pairs = [
            self.stores[w][int(i - self.starts[w])]
            for w, i in zip(which.tolist(), ids.tolist(), strict=True)
        ]
        return concatenate(pairs, ids) if self.packing else collate(pairs, ids)

    def remaining(self) -> list[np.ndarray]:
        """The batches of this epoch that are still to come."""
        plan = self.plan(self.epoch)
        self._epoch_size = sum(map(len, plan))
        used = np.cumsum([0, *map(len, plan)])
        return plan[int(np.searchsorted(used, self.offset)) :]

    def heaviest(self) -> Batch:
        """The batch of this epoch with most positions of both sides, padding included."""

        def positions(ids: np.ndarray) -> int:
            sides = (self.source_lengths[ids] + 1, self.target_lengths[ids] + 1)
            return sum(int(x.sum()) if self.packing else len(x) * int(x.max()) for x in sides)

        return self.batch(max(self.plan(self.epoch), key=positions))

    @property
    def epoch_size(self) -> int:
        """Sentences of an epoch."""
        return sum(
            int(w) * len(s) + round((w - int(w)) * len(s))
            for w, s in zip(self.weights, self.stores, strict=True)
        )

    def advance(self, count: int) -> None:
        """Count sentences as used; after the last one of an epoch the next begins."""
        self.offset += count
        if self.offset >= self._epoch_size:
            self.epoch, self.offset = self.epoch + 1, 0

    def padding_share(self) -> float:
        """Share of padding among all positions of both sides, in the first epoch."""
        if self.packing:
            return 0.0
        real = padded = 0
        for ids in self.plan(1):
            for lengths in (self.source_lengths[ids] + 1, self.target_lengths[ids] + 1):
                real += int(lengths.sum())
                padded += len(ids) * int(lengths.max())
        return 1 - real / max(padded, 1)
