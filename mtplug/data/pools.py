"""Which sentence pairs are shuffled together: an epoch as a sequence of pools.

A corpus that fits into one pool is shuffled whole. A larger one is read in blocks of neighbouring
pairs; each pool takes as many blocks as fill it, from all over all corpora, in a pseudo-random
permutation that is computed and not stored. What a pool holds depends on seed, epoch and its number
alone, and neither time nor memory depend on the size of the corpora.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from mtplug.data.pairs import Pairs, joined
from mtplug.data.store import Store
from mtplug.errors import UserError

POOL = 1 << 18
"""Pairs that are shuffled and grouped by length together, if nothing else is said."""


@dataclass
class Pool:
    """Pairs in memory.

    Attributes:
        pairs: in no order that matters.
        ids: (N,) number of each in the run's data, from 0.
    """

    pairs: Pairs
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class Pools(ABC):
    """The pools of each epoch."""

    count: int
    """pools of an epoch"""
    pairs: int
    """pairs of an epoch"""

    @abstractmethod
    def pool(self, epoch: int, number: int, rng: np.random.Generator) -> Pool:
        """Pool `number`, from 0, of an epoch, from 1; `rng` is that pool's."""


class StorePools(Pools):
    """Pools of one or several stores.

    Args:
        stores: one for each corpus.
        weights: how often each corpus is seen in an epoch: 1.5 means every sentence once and half
            of them twice, chosen anew in each epoch.
        seed: decides the order.
        size: pairs of a pool, about.
        temperature: see `epoch_weights`.
    """

    def __init__(
        self,
        stores: list[Store],
        weights: list[float],
        seed: int,
        size: int = POOL,
        temperature: float = 1.0,
    ):
        weights = epoch_weights([len(s) for s in stores], weights, temperature)
        self.stores, self.seed = stores, seed
        whole = [int(w) for w in weights]
        parts = [w - n for w, n in zip(weights, whole, strict=True)]
        copies = [n + (part > 0) for n, part in zip(whole, parts, strict=True)]
        self._whole, self._parts = whole, parts
        self._bases = np.cumsum([0, *map(len, stores)])
        blocks = [c * s.blocks for c, s in zip(copies, stores, strict=True)]
        self._starts = np.cumsum([0, *blocks])  # of each corpus among all copies of all blocks
        self.pairs = sum(
            n * len(s) + round(p * len(s)) for n, p, s in zip(whole, parts, stores, strict=True)
        )
        require_pairs(self.pairs, weights)
        self.count = min(-(-self.pairs // size), int(self._starts[-1]))  # none without a block

    def pool(self, epoch: int, number: int, rng: np.random.Generator) -> Pool:
        total = int(self._starts[-1])
        places = np.arange(total * number // self.count, total * (number + 1) // self.count)
        if self.count > 1:
            places = np.sort(permuted(places, total, [self.seed, epoch]))
        parts, ids = [], []
        corpora = np.searchsorted(self._starts, places, side="right") - 1
        for corpus, place in zip(corpora.tolist(), places.tolist(), strict=True):
            store = self.stores[corpus]
            copy, block = divmod(place - int(self._starts[corpus]), store.blocks)
            pairs, first = store.block(block), int(store.index["first"][block])
            rows = np.arange(len(pairs))
            if copy == self._whole[corpus]:  # the copy that only a part of the sentences get
                share = self._parts[corpus]
                kept = round(share * (first + len(pairs))) - round(share * first)
                rows = np.sort(rng.permutation(rows)[:kept])
                pairs = pairs.take(rows)
            parts.append(pairs)
            ids.append(int(self._bases[corpus]) + first + rows)
        found = Pool(joined(parts), np.concatenate(ids))
        for store in self.stores:
            store.forget()
        return found


def check_weights(weights: list[float]) -> None:
    """Raises `UserError` if a weight of a corpus is negative, or none is positive."""
    if min(weights) < 0 or max(weights) == 0 or not all(map(math.isfinite, weights)):
        raise UserError(
            f"data.train: weights {weights}: none may be negative, and one must be above 0"
        )


def require_pairs(pairs: int, weights: list[float]) -> None:
    """Raises `UserError` if an epoch has no sentence pair."""
    if not pairs:
        raise UserError(
            f"data.train: with weights {weights} an epoch has no sentence pair; raise them"
        )


def epoch_weights(sizes: list[int], weights: list[float], temperature: float = 1.0) -> list[float]:
    """How often each corpus is seen in an epoch.

    A sentence's corpus is i with probability p_i ∝ (w_i n_i)^(1/T) (Devlin's multilingual BERT;
    Arivazhagan et al. 2019, section 4), and the epoch is as long as at T = 1.

    Args:
        sizes: n, sentences of each corpus.
        weights: w.
        temperature: T; 1 leaves the weights as they are, more evens corpora out.
    """
    if temperature == 1:
        return weights
    seen = [w * n for w, n in zip(weights, sizes, strict=True)]
    powers = [(s / max(seen)) ** (1 / temperature) if s else 0.0 for s in seen]
    scale = sum(seen) / sum(powers)
    return [p * scale / max(n, 1) for p, n in zip(powers, sizes, strict=True)]


def permuted(numbers: np.ndarray, size: int, key: list[int]) -> np.ndarray:
    """Where a pseudo-random permutation of 0 … size - 1 takes each of `numbers`.

    A Feistel network with cycle walking (Black and Rogaway 2002, section 3).

    Args:
        numbers: (N,) below `size`.
        key: decides the permutation.
    """
    half = np.uint64(max((size - 1).bit_length() + 1, 2) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence(key).generate_state(8, np.uint64)
    found = numbers.astype(np.uint64)
    walking = np.arange(len(found))
    while len(walking):
        left, right = found[walking] >> half, found[walking] & mask
        for one in keys:
            left, right = right, left ^ (mixed(right + one) & mask)
        found[walking] = (left << half) | right
        walking = walking[found[walking] >= size]
    return found.astype(np.int64)


def mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
