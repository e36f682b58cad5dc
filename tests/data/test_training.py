"""The order of training: everyone once, within bounds, decided by the seed, at a cost that no corpus raises."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch

from mtplug.data.pairs import Column, Pairs
from mtplug.data.pools import StorePools, permuted
from mtplug.data.training import TrainingData


class FakeStore:
    """Random pairs in blocks of ten."""

    def __init__(self, count, seed, same=False):
        rng = np.random.default_rng(seed)
        self.rows = [
            (rng.integers(3, 9, rng.integers(1, 30)), rng.integers(3, 9, rng.integers(1, 30)))
            for _ in range(count)
        ]
        if same:
            self.rows = [(source, source) for source, _ in self.rows]
        self.index = {"first": np.arange(0, count, 10)}
        self.blocks, self.read = len(self.index["first"]), []

    def __len__(self):
        return len(self.rows)

    def block(self, number):
        self.read.append(number)
        rows = self.rows[number * 10 : number * 10 + 10]
        return Pairs(*(Column.of([r[side] for r in rows], np.uint16) for side in (0, 1)))

    def forget(self):
        pass


def data(weights=(1.0,), seed=1, counts=(200, 77), pool=1000, max_tokens=128):
    stores = [FakeStore(counts[i], i) for i in range(len(weights))]
    return TrainingData(StorePools(stores, list(weights), seed, pool), max_tokens, seed)


def epoch(d, number=1):
    """Sentence numbers of each batch of an epoch."""
    d.restore({"epoch": number, "sample_offset": 0})
    return [batch.ids for batch in d.remaining()]


@pytest.mark.parametrize("pool", [1000, 60, 7, 1])  # blocks have ten pairs
def test_every_sentence_once_per_epoch_within_the_token_budget(pool):
    d = data(pool=pool)
    plan = epoch(d)
    assert sorted(np.concatenate(plan).tolist()) == list(range(200))
    for planned in d.remaining():
        made = d.batch(planned)
        assert max(made.source_tokens.numel(), made.target_tokens.numel()) <= 128


@pytest.mark.parametrize("packing", [False, True])
def test_a_batch_has_no_more_sentences_than_asked_for(packing):
    def batches(**most):
        pools = StorePools([FakeStore(200, 0)], [1.0], 1, 1000)
        return epoch(TrainingData(pools, 128, 1, packing, **most))

    free, limited = batches(), batches(max_sentences=3)
    assert max(map(len, free)) > 3 == max(map(len, limited))
    assert sorted(np.concatenate(limited).tolist()) == list(range(200))
    one = batches(max_sentences=1)
    assert [len(batch) for batch in one] == [1] * 200
    data = TrainingData(StorePools([FakeStore(200, 0)], [1.0], 1, 1000), 128, 1, packing)
    made = data.batch(next(data.remaining()))
    assert made.packed == packing and len(made.source_tokens) == (1 if packing else len(made))


def test_changed_pairs_keep_to_the_token_budget(monkeypatch):
    """Sentences that become longer, the more so the greater number and epoch are, some by much."""

    def longer(pairs, ids, epoch):
        times = 1 + (ids + epoch) % 4
        rows = [
            [np.tile(row, t) for row, t in zip(column.rows(), times, strict=True)]
            for column in (pairs.source, pairs.target)
        ]
        return Pairs(*(Column.of(side, np.uint16) for side in rows))

    monkeypatch.setattr("mtplug.data.training.CHANGED", 17)
    plain = data(pool=60)
    d = TrainingData(plain.pools, 128, 1, change=longer)
    for number in (1, 2):
        seen = {}
        d.restore({"epoch": number, "sample_offset": 0})
        for planned in d.remaining():
            made = d.batch(planned)
            assert len(made) == 1 or max(map(torch.numel, (made.source_tokens, made.target_tokens))) <= 128  # fmt: skip
            seen |= zip(made.ids.tolist(), made.source_lengths.tolist(), strict=True)
        sources = [len(source) for source, _ in plain.pools.stores[0].rows]
        assert seen == {i: n * (1 + (i + number) % 4) + 1 for i, n in enumerate(sources)}


def test_batches_hold_the_sentences_that_they_name():
    d = data((1.0, 2.0), pool=60)
    rows = [*d.pools.stores[0].rows, *d.pools.stores[1].rows]
    for planned in d.remaining():
        made = d.batch(planned)
        for n, i in enumerate(made.ids):
            source, target = made.source_tokens[n], made.target_tokens[n]
            assert source[: made.source_lengths[n] - 1].tolist() == rows[i][0].tolist()
            assert target[: made.target_lengths[n] - 1].tolist() == rows[i][1].tolist()


@pytest.mark.parametrize("pool", [1000, 60])
@pytest.mark.parametrize("weight", [0.5, 2.0, 1.5])
def test_weights_set_how_often_a_corpus_is_seen(weight, pool):
    seen = Counter(np.concatenate(epoch(data((1.0, weight), pool=pool))).tolist())
    assert all(seen[i] == 1 for i in range(200))
    second = [seen[i] for i in range(200, 277)]
    assert sum(second) == int(weight) * 77 + round((weight % 1) * 77)
    assert max(second) - min(second) <= 1


def test_part_of_a_corpus_is_chosen_anew_in_each_epoch():
    d = data((0.5,))
    first, second = (set(np.concatenate(epoch(d, n)).tolist()) for n in (1, 2))
    assert len(first) == len(second) == 100 and first != second


@pytest.mark.parametrize("pool", [1000, 60])
def test_order_depends_on_seed_and_epoch_alone(pool):
    def order(seed, number):
        return [ids.tolist() for ids in epoch(data(seed=seed, pool=pool), number)]

    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(2, 3)
    assert order(1, 3) != order(1, 4)


def test_order_within_one_pool_is_that_of_version_0_1():
    # Digests of what `TrainingData.plan` gave when an epoch was planned as a whole: runs that were
    # begun then go on with the same batches.
    for weights, number, digest in (
        ((1.0,), 1, "8cfc93132a4ed923"),
        ((1.0,), 3, "ebbca0706b4445e6"),
        ((1.0, 2.0), 1, "e366822f186bf6a8"),
        ((1.0, 2.0), 3, "59a97c4b07b28b21"),
    ):
        plan = b"|".join(ids.astype("<i8").tobytes() for ids in epoch(data(weights), number))
        assert hashlib.sha256(plan).hexdigest()[:16] == digest


@pytest.mark.parametrize("pool", [1000, 60])
def test_position_is_where_one_goes_on(pool):
    whole, d = [], data(pool=pool)
    for _ in range(2):
        for planned in d.remaining():
            d.advance(planned)
            whole.append((planned.ids.tolist(), d.state()))
    assert d.state() == {"epoch": 3, "sample_offset": 0, "pool": 0, "pool_offset": 0}
    for stop in range(len(whole) - 1):
        resumed = data(pool=pool)
        resumed.restore(whole[stop][1])
        assert next(resumed.remaining()).ids.tolist() == whole[stop + 1][0]


def test_position_holds_with_other_batch_sizes():
    d = data(pool=60)
    for planned in d.remaining():
        d.advance(planned)
        if d.offset > 100:
            break
    other = data(pool=60, max_tokens=400)
    other.restore(d.state())
    rest = [i for planned in other.remaining() for i in planned.ids]
    assert len(set(rest)) == len(rest) == 200 - d.offset
    # A place in the very last batch leaves the rest of that, so that the epoch ends with an update and
    # all that is due after it.
    place = {"epoch": 1, "sample_offset": 199, "pool": d.pools.count - 1}
    for size in (128, 400):
        other = data(pool=60, max_tokens=size)
        *_, last = other.remaining()
        other.restore({**place, "pool_offset": len(last.pool) - 1})
        (planned,) = other.remaining()
        assert len(planned) == 1 and planned.after == last.after
    # Nothing is left of a pool that has become smaller; training must go on all the same.
    other.restore({**place, "pool_offset": len(last.pool)})
    assert not list(other.remaining())
    assert other.epoch == 2 and next(other.remaining())


def test_position_of_a_run_that_had_no_pools_is_one_in_the_whole_epoch():
    plan = list(data(pool=60).remaining())
    used = sum(map(len, plan[:20]))
    assert len(plan[0].pool) < used
    d = data(pool=60)
    d.restore({"epoch": 1, "sample_offset": used})
    assert [p.ids.tolist() for p in d.remaining()] == [p.ids.tolist() for p in plan[20:]]


def test_a_resume_reads_only_the_pool_that_it_needs():
    d = data(pool=60)
    state = [d.advance(p) or d.state() for p in d.remaining()][-2]
    assert state["pool"] == d.pools.count - 1 > 1
    resumed = data(pool=60)
    resumed.restore(state)
    next(resumed.remaining())
    assert len(resumed.pools.stores[0].read) <= 60 // 10


def test_pools_are_of_about_the_size_asked_for_and_mix_the_corpora():
    d = data((1.0, 0.25, 3.5), counts=(1000, 800, 50), pool=200)
    sizes, shares = [], []
    for number in range(d.pools.count):
        pool = d.pools.pool(1, number, np.random.default_rng(number))
        sizes.append(len(pool))
        shares.append(np.histogram(pool.ids, [0, 1000, 1800, 1850])[0])
    assert sum(sizes) == 1000 + 200 + 175
    assert max(sizes) < 300
    assert all(share.min() > 0 for share in shares)


def test_other_blocks_come_together_in_each_epoch():
    pools = data(pool=60).pools
    found = [frozenset(pools.pool(n, 0, np.random.default_rng(0)).ids.tolist()) for n in (1, 2, 3)]
    assert len(set(found)) == 3


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 1000])
def test_permutation_takes_every_number_to_another(size):
    found = permuted(np.arange(size), size, [1, 2])
    assert sorted(found.tolist()) == list(range(size))
    if size > 3:
        assert found.tolist() != permuted(np.arange(size), size, [1, 3]).tolist()


def test_permutation_looks_random():
    # Of a random permutation of n numbers, each of 64 bins that 64 equal runs go to gets n / 64² on
    # average; chi-squared of 63² degrees of freedom stays below its mean + 5 standard deviations.
    size = 1 << 16
    table = np.zeros((64, 64))
    found = permuted(np.arange(size), size, [7, 1])
    np.add.at(table, (np.arange(size) * 64 // size, found * 64 // size), 1)
    expected = size / 64**2
    chi = float(((table - expected) ** 2 / expected).sum())
    assert abs(chi - 63**2) < 5 * np.sqrt(2 * 63**2)


def test_little_padding():
    # Lengths of both sides are independent here, the worst case; sorted by the longer side.
    def share(store, pool):
        return TrainingData(StorePools([store], [1.0], 1, pool), 1024, 1).padding_share()

    assert share(FakeStore(3000, 5), 3000) < 0.3
    assert share(FakeStore(3000, 5, same=True), 3000) < 0.05
    assert share(FakeStore(3000, 5, same=True), 1500) < 0.05
