"""Training without a store gives the batches of a store, and goes on where it was."""

import itertools

import numpy as np
import pytest

from mtplug.data.build import build_store
from mtplug.data.corpora.csv import Csv, CsvConfig
from mtplug.data.corpora.text import Text, TextConfig
from mtplug.data.encoding import Encoding
from mtplug.data.pools import StorePools
from mtplug.data.text_pools import TextPools
from mtplug.data.tokenizers import SentencePiece, SentencePieceConfig
from mtplug.data.training import TrainingData
from mtplug.errors import UserError
from tests import tiny


@pytest.fixture(scope="module")
def encoding():
    lines = [text for pair in tiny.pairs(300, 0) for text in pair]
    tokenizer = SentencePiece.train(SentencePieceConfig(vocab_size=40), lines, "joint")
    return Encoding((tokenizer, tokenizer), 8, "skip")


@pytest.fixture
def corpora(tmp_path):
    made = []
    for name, count in (("a", 90), ("b", 40)):
        for side, lang in enumerate(("xx", "en")):
            lines = [pair[side] for pair in tiny.pairs(count, count)]
            (tmp_path / f"{name}.{lang}").write_text("\n".join(lines) + "\n")
        config = TextConfig(source=f"{name}.xx", target=f"{name}.en", root=str(tmp_path))
        made.append(Text(config, ("xx", "en")))
    return made


def tokens(data, number):
    data.restore({"epoch": number, "sample_offset": 0})
    batches = map(data.batch, data.remaining())
    return [(b.source_tokens.tolist(), b.target_tokens.tolist()) for b in batches]


def test_corpora_of_one_pool_give_the_batches_of_a_store(tmp_path, corpora, encoding):
    weights = [1.0, 2.0]
    stores = [
        build_store(tmp_path / str(n), one, encoding, {}, workers=1)
        for n, one in enumerate(corpora)
    ]
    stored = TrainingData(StorePools(stores, weights, 3), 60, 3)
    read = TrainingData(TextPools(corpora, encoding, weights), 60, 3)
    assert encoding(list(corpora[0]), 1)[2]["too_long"] > 0
    assert tokens(read, 1) == tokens(stored, 1) != tokens(stored, 2) == tokens(read, 2)


def test_every_line_is_seen_as_often_as_its_weight_says(corpora, encoding):
    wide = Encoding(encoding.tokenizers, 1000, "skip")
    pools = TextPools(corpora, wide, [0.5, 1.5], size=25)
    assert pools.count == 5
    rng = np.random.default_rng(0)
    for epochs in ((1, 2), (3, 4)):
        seen = np.concatenate(
            [pools.pool(e, n, rng).ids for e in epochs for n in range(pools.count)]
        )
        assert np.bincount(seen, minlength=130).tolist() == [1] * 90 + [3] * 40


@pytest.mark.parametrize("size", [1, 2])
def test_pools_are_never_empty(corpora, encoding, size):
    pools = TextPools(corpora, Encoding(encoding.tokenizers, 1000, "skip"), [1.0, 1.0], size=size)
    rng = np.random.default_rng(0)
    found = [pools.pool(1, n, rng).ids for n in range(pools.count)]
    assert min(map(len, found)) > 0 and sorted(np.concatenate(found).tolist()) == list(range(130))


def test_a_corpus_without_lines_changes_nothing(tmp_path, corpora, encoding):
    (tmp_path / "none.csv").write_text("xx,en\n")
    none = Csv(CsvConfig(path="none.csv", root=str(tmp_path)), ("xx", "en"))
    alone, beside = (
        TrainingData(TextPools(some, encoding, [1.0] * len(some), size=30), 60, 1)
        for some in (corpora[:1], [none, corpora[0]])
    )
    assert list(none) == [] and tokens(beside, 2) == tokens(alone, 2) != []


def test_an_epoch_without_pairs_is_refused(tmp_path, corpora, encoding):
    with pytest.raises(UserError, match="an epoch has no sentence pair"):
        TextPools(corpora, encoding, [0.001, 0.001])
    store = build_store(tmp_path / "s", corpora[0], encoding, {}, workers=1)
    with pytest.raises(UserError, match="an epoch has no sentence pair"):
        StorePools([store], [0.001], 3)


def test_position_is_where_one_goes_on_without_tokenising_what_was_before(corpora, encoding):
    def data():
        return TrainingData(TextPools(corpora, encoding, [1.0, 1.0], size=30), 60, 1)

    d, whole = data(), []
    for _ in range(2):
        for planned in d.remaining():
            d.advance(planned)
            whole.append((d.batch(planned).source_tokens.tolist(), d.state()))
    for stop in range(len(whole) - 1):
        resumed = data()
        resumed.restore(whole[stop][1])
        planned = next(resumed.remaining())
        assert resumed.batch(planned).source_tokens.tolist() == whole[stop + 1][0]
        assert sum(c["pairs"] for c in resumed.pools._counts.values()) <= 2 * 40


def test_lines_that_are_left_out_are_told_when_an_epoch_was_read(corpora, encoding):
    """Without a store nothing was counted, and a line that is too long was told without its file."""
    said = []
    pools = TextPools(corpora, encoding, [1.0, 1.0], size=30, report=said.append)
    data = TrainingData(pools, 60, 1)
    due = [encoding(list(corpus), 1)[2] for corpus in corpora]
    for _ in range(2):
        for planned in data.remaining():
            assert said or planned.epoch == 1
            data.advance(planned)
    pairs, long = (sum(counts[key] for counts in due) for key in ("pairs", "too_long"))
    assert said == [f"data: epoch 1: {pairs} pairs; {long} beyond 8 tokens (skip)"] and long > 0
    strict = TextPools(corpora[:1], Encoding(encoding.tokenizers, 8, "error"), [1.0])
    with pytest.raises(UserError, match=r"a\.xx and .*a\.en: pair \d+ has \d+ tokens"):
        list(TrainingData(strict, 60, 1).remaining())


def test_nothing_left_is_told(corpora, encoding):
    none = TextPools(corpora[:1], Encoding(encoding.tokenizers, 1, "skip"), [1.0])
    with pytest.raises(UserError, match=r"a\.xx and .*a\.en: no sentence pair is left of 90 lines"):
        list(itertools.islice(TrainingData(none, 60, 1).remaining(), 1))


def test_a_corpus_that_changes_while_it_is_read_is_told(tmp_path, corpora, encoding):
    pools = TextPools(corpora, encoding, [1.0, 1.0], size=25)
    pools.pool(1, 0, np.random.default_rng(0))
    (tmp_path / "b.en").write_text("six\n" * 40)
    with pytest.raises(UserError, match=r"b\.en has changed since the training began"):
        for number in range(pools.count):
            pools.pool(1, number, np.random.default_rng(number))
