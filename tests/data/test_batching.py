"""Batches: everyone once, within bounds, in an order that the seed decides."""

from collections import Counter

import numpy as np
import pytest
import torch

from mtplug.data.batching import TrainingData, collate


class FakeStore:
    def __init__(self, count, seed):
        rng = np.random.default_rng(seed)
        self.rows = [
            (rng.integers(3, 9, rng.integers(1, 30)), rng.integers(3, 9, rng.integers(1, 30)))
            for _ in range(count)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def lengths(self):
        return tuple(np.array([len(r[side]) for r in self.rows]) for side in (0, 1))


def data(weights=(1.0,), seed=1, counts=(200, 77)):
    stores = [FakeStore(counts[i], i) for i in range(len(weights))]
    return TrainingData(stores, list(weights), 128, seed)


def test_collate_pads_shifts_and_ends_with_eos():
    batch = collate([([5, 6], [7, 8, 9]), ([4], [3])], np.arange(2))
    assert batch.source_tokens.tolist() == [[5, 6, 1], [4, 1, 0]]
    assert batch.target_tokens.tolist() == [[7, 8, 9, 1], [3, 1, 0, 0]]
    assert batch.prev_output_tokens.tolist() == [[1, 7, 8, 9], [1, 3, 0, 0]]
    assert batch.source_lengths.tolist() == [3, 2] and batch.target_count == 6


def test_every_sentence_once_per_epoch_within_the_token_budget():
    d = data()
    plan = d.plan(1)
    assert sorted(np.concatenate(plan).tolist()) == list(range(200))
    for ids in plan:
        longest = max(d.source_lengths[ids].max(), d.target_lengths[ids].max()) + 1
        assert longest * len(ids) <= 128


@pytest.mark.parametrize("weight", [0.5, 2.0, 1.5])
def test_weights_set_how_often_a_corpus_is_seen(weight):
    seen = Counter(np.concatenate(data((1.0, weight)).plan(1)).tolist())
    assert all(seen[i] == 1 for i in range(200))
    second = [seen[i] for i in range(200, 277)]
    assert sum(second) == int(weight) * 77 + round((weight % 1) * 77)
    assert max(second) - min(second) <= 1


def test_order_depends_on_seed_and_epoch_alone():
    def orders(d):
        return [ids.tolist() for ids in d.plan(3)]

    assert orders(data()) == orders(data())
    assert orders(data()) != orders(data(seed=2))
    assert orders(data()) != [ids.tolist() for ids in data().plan(4)]


def test_position_is_where_one_goes_on():
    whole, d = [], data()
    for _ in range(2):
        for ids in d.remaining():
            d.advance(len(ids))
            whole.append((ids.tolist(), d.state()))
    for stop in (0, 5, len(whole) // 2 - 1, len(whole) - 3):
        resumed = data()
        resumed.restore(whole[stop][1])
        assert resumed.remaining()[0].tolist() == whole[stop + 1][0]


def test_little_padding():
    d = TrainingData([FakeStore(3000, 5)], [1.0], 1024, 1)
    # Lengths of both sides are independent here, the worst case; sorted by the longer side.
    assert d.padding_share() < 0.3
    same = TrainingData([FakeStore(3000, 5)], [1.0], 1024, 1)
    for row in range(3000):
        same.stores[0].rows[row] = (same.stores[0].rows[row][0],) * 2
    assert TrainingData(same.stores, [1.0], 1024, 1).padding_share() < 0.05


def test_batch_moves_its_tensors():
    batch = collate([([5], [6])], np.arange(1)).to(torch.device("meta"))
    assert batch.source_tokens.device.type == "meta" and batch.ids.tolist() == [0]
