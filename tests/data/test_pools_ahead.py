"""Pools that other processes change, and that are made while the one before is trained on: the same batches."""

import multiprocessing
import os
import random
import signal
import threading
import time
import weakref

import numpy as np
import pytest
import torch

from mtplug.data.corpora.text import Text, TextConfig
from mtplug.data.encoding import Encoding
from mtplug.data.pairs import Column, Pairs
from mtplug.data.pools import Pool, StorePools
from mtplug.data.resample import Resample
from mtplug.data.text_pools import TextPools
from mtplug.data.tokenizers import SentencePieceConfig, SentencePieceFactory
from mtplug.data.training import TrainingData
from mtplug.errors import MtplugError, UserError
from tests import tiny
from tests.data.test_training import FakeStore

COUNT, POOL = 400, 100


def longer(pairs, ids, epoch):
    """Other ids, and more of them, by number and epoch."""
    sides = [
        [np.repeat(row, 1 + (int(i) + epoch) % 3) + epoch for row, i in zip(c.rows(), ids, strict=True)]
        for c in (pairs.source, pairs.target)
    ]  # fmt: skip
    return Pairs(*(Column.of(side, np.uint16) for side in sides))


def data(change=longer, count=COUNT, pools=None, **settings):
    pools = pools or StorePools([FakeStore(count, 0)], [1.0], 1, POOL)
    return TrainingData(pools, 128, 1, change=change, **settings)


@pytest.fixture
def large(monkeypatch):
    """Pools of 100 pairs are large, and are changed 16 at a time."""
    monkeypatch.setattr("mtplug.data.training.LARGE", 64)
    monkeypatch.setattr("mtplug.data.training.CHANGED", 16)
    yield
    assert not multiprocessing.active_children()


def batches(d, epochs):
    """Ids and content of each batch, and the state behind it."""
    seen = []
    while d.epoch <= epochs:
        for planned in d.remaining():
            d.advance(planned)
            made = d.batch(planned)
            content = [made.ids, made.source_tokens.numpy(), made.target_tokens.numpy()]
            seen.append((*(part.tobytes() for part in content), d.state()))
    return seen


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_processes_nor_on_being_made_ahead(workers, monkeypatch):
    plain = batches(data(), 3)  # in this process, one pool after the other
    monkeypatch.setattr("mtplug.data.training.LARGE", 64)
    monkeypatch.setattr("mtplug.data.training.CHANGED", 16)
    d = data(workers=workers)
    assert 0 < d.padding_share() < 1 and len(multiprocessing.active_children()) == workers
    assert d.heaviest() and d._ahead is None  # nothing is trained on yet
    assert batches(d, 3) == plain
    assert len(multiprocessing.active_children()) == workers
    d.close()
    assert not multiprocessing.active_children()
    d.restore({"epoch": 1, "sample_offset": 0})
    assert batches(d, 1) == [one for one in plain if one[-1]["epoch"] == 1] + [
        next(one for one in plain if one[-1]["epoch"] == 2)
    ]
    d.close()


def test_a_run_goes_on_from_any_place(large):
    whole = batches(data(), 2)
    boundaries = [n for n, one in enumerate(whole) if one[-1]["pool_offset"] == 0]
    assert len(boundaries) == 8
    d = data(workers=2)  # which goes on making the pool that was next before it was restored
    for stop in (0, 5, boundaries[0], boundaries[0] + 1, boundaries[3] - 1, boundaries[3]):
        d.restore(whole[stop][-1])
        assert batches(d, 2)[:20] == whole[stop + 1 : stop + 21]
    d.close()


def test_the_next_pool_is_made_while_this_one_is_used(large):
    d = data(workers=2)
    planned = d.remaining()
    for _ in range(2):
        d.advance(next(planned))
    next(planned)
    place, made = d._ahead
    assert place == (1, 1) and len(made.result(timeout=20)[0]) == POOL
    d.close()  # what was made is lost, and is made again when it is needed
    for one in planned:
        d.advance(one)
        if d._pool == 1 and d._pool_offset:
            break
    assert d._ahead is None or d._ahead[0] == (1, 2)
    d.close()


def test_two_pools_are_in_memory_at_most(large, monkeypatch):
    known, others = [], []
    initialise = Pool.__init__
    monkeypatch.setattr(
        Pool, "__init__", lambda self, *a: initialise(self, *a) or known.append(weakref.ref(self))
    )

    class Watched(StorePools):
        def pool(self, *given):
            others.append(
                (threading.current_thread().name, sum(one() is not None for one in known))
            )
            return super().pool(*given)

    d = data(pools=Watched([FakeStore(COUNT, 0)], [1.0], 1, POOL), workers=2, last_epoch=2)
    assert len(batches(d, 2)) > 100
    d.close()
    assert [alive for _, alive in others] == [0] + 7 * [1]
    assert others[0][0] == "MainThread" and all(name != "MainThread" for name, _ in others[1:])


def test_random_numbers_of_this_process_are_left_alone(large):
    def states():
        return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]

    before = states()
    d = data(workers=2)
    batches(d, 1)
    d.close()
    assert states() == before


class Broken(StorePools):
    def pool(self, epoch, number, rng):
        if (epoch, number) == (1, 2):
            raise UserError("shard-00001.bin is damaged")
        return super().pool(epoch, number, rng)


def fails(pairs, ids, epoch):
    if epoch == 2:
        raise UserError("no text")
    return longer(pairs, ids, epoch)


def dies(pairs, ids, epoch):
    if epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return longer(pairs, ids, epoch)


@pytest.mark.parametrize(
    ("change", "pools", "told", "place"),
    [
        (longer, Broken, "^shard-00001.bin is damaged$", (1, 2)),
        (fails, StorePools, "^no text$", (2, 0)),
        (dies, StorePools, "^one of 2 processes that cut text anew has died", (2, 0)),
    ],
)
def test_errors_are_raised_where_the_pool_is_needed(large, change, pools, told, place):
    """All batches before it are given out, but for the last one, which is held until it is known where to go on."""
    places = [(state["epoch"], state["pool"]) for *_, state in batches(data(), 2)]
    d = data(change, pools=pools([FakeStore(COUNT, 0)], [1.0], 1, POOL), workers=2)
    seen = 0
    with pytest.raises(MtplugError, match=told):
        while True:
            for planned in d.remaining():
                d.advance(planned)
                seen += 1
    assert seen == places.index(place) + (place[0] == 2)


def test_what_is_being_made_is_thrown_away_without_waiting(large):
    def slow(pairs, ids, epoch):
        time.sleep(0 if epoch == 1 else 60)
        return longer(pairs, ids, epoch)

    d = data(slow, count=POOL, workers=2)
    for planned in d.remaining():
        d.advance(planned)
    assert d.epoch == 2 and d._ahead is not None
    started = time.monotonic()
    d.close()
    assert time.monotonic() - started < 1


def test_nothing_is_made_behind_the_last_epoch(large):
    d = data(last_epoch=2, workers=1)
    batches(d, 2)
    assert d._ahead is None
    d.close()


def test_pools_of_text_are_made_ahead_too(large, tmp_path):
    lines = tiny.pairs(COUNT, 3)
    for side, name in ((0, "a"), (1, "b")):
        (tmp_path / name).write_text("".join(pair[side] + "\n" for pair in lines))
    corpus = Text(TextConfig(source="a", target="b", root=str(tmp_path)), ("xx", "en"))
    texts = [text for pair in lines for text in pair]
    config = SentencePieceConfig(vocab_size=40, sampling=0.3)
    tokenizer = SentencePieceFactory(config).train(texts, "joint")

    def made(size, **settings):
        encoding = Encoding((tokenizer, tokenizer), 100, "skip", keep_text=True)
        change = Resample((tokenizer, tokenizer), 1, 100)
        return data(change, pools=TextPools([corpus], encoding, [1.0], size), **settings)

    ahead = made(POOL, workers=2)
    found = batches(ahead, 2)
    ahead.close()
    assert ahead.pools.count == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtplug.data.training.LARGE", 1000)
        assert batches(made(POOL), 2) == found


@pytest.mark.parametrize("change", [longer, None])
def test_nothing_is_started_for_small_data_nor_without_change(change, monkeypatch):
    if change is None:
        monkeypatch.setattr("mtplug.data.training.LARGE", 1)
    d = data(change, workers=2)
    threads = threading.active_count()
    for planned in d.remaining():
        d.advance(planned)
        assert threading.active_count() == threads and not multiprocessing.active_children()
