"""Subword regularisation: other subwords of the same text in each epoch."""

from __future__ import annotations

import numpy as np

from mtplug.data.pairs import Column, Pairs
from mtplug.data.pools import mixed
from mtplug.data.tokenizers import Tokenizer


class Resample:
    """Cuts the text of pairs anew: BPE-dropout (Provilkov et al. 2020), unigram sampling (Kudo 2018).

    Which subwords come out depends on seed, epoch and sentence alone, and not on its batch.

    Args:
        tokenizers: of source and target.
        seed: of the run.
        max_length: where more tokens come out, or none, the sentence keeps those that it has.
    """

    def __init__(self, tokenizers: tuple[Tokenizer, Tokenizer], seed: int, max_length: int):
        self.tokenizers, self.seed, self.max_length = tokenizers, seed, max_length

    def __call__(self, pairs: Pairs, ids: np.ndarray, epoch: int) -> Pairs:
        """
        Args:
            pairs: with their texts.
            ids: (N,) number of each in the run's data.
            epoch: from 1.
        """
        assert pairs.texts is not None
        columns = []
        key = np.uint64(np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0])
        for side, (tokenizer, column) in enumerate(
            zip(self.tokenizers, (pairs.source, pairs.target), strict=True)
        ):
            if not tokenizer.samples:
                columns.append(column)
                continue
            seeds = mixed(mixed(2 * ids.astype(np.uint64) + np.uint64(side)) + key) >> np.uint64(33)
            rows = tokenizer.sample(pairs.texts[side].texts(), seeds.tolist())
            columns.append(
                Column.of(
                    [
                        new if 0 < len(new) <= self.max_length else old.tolist()
                        for new, old in zip(rows, column.rows(), strict=True)
                    ],
                    column.flat.dtype,
                )
            )
        return Pairs(columns[0], columns[1])
