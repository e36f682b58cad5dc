"""Noise against its definitions in the papers."""

import math

import numpy as np
import pytest
import torch

from mtplug.data import noising
from mtplug.data.tokenizers import PAD

MASK = 4
ORDINARY = np.arange(5, 100)


def sentence(length):
    return np.random.default_rng(length).integers(5, 100, length)


def assert_distributed(found, expected=None):
    """Pearson's chi-squared test, at 0.1 %."""
    found = np.array(found, float)
    expected = np.full(len(found), found.mean()) if expected is None else np.array(expected)
    statistic = float(((found - expected) ** 2 / expected).sum())
    half = torch.tensor([(len(found) - 1) / 2, statistic / 2], dtype=torch.float64)
    assert float(torch.special.gammaincc(*half)) > 1e-3, (found, expected)


def rngs(count):
    return (noising.generator(1, 1, n) for n in range(count))


def test_same_noise_for_seed_epoch_and_sentence_and_other_for_any_other():
    draws = [noising.generator(*key).integers(1 << 60) for key in ((1, 2, 3), (1, 2, 3))]
    others = [
        noising.generator(*key).integers(1 << 60) for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4))
    ]
    assert draws[0] == draws[1] and len({draws[0], *others}) == 4


def test_mask_chooses_15_percent_and_changes_80_10_10():
    ids = sentence(40)
    counts = dict.fromkeys(("chosen", "masked", "kept", "other"), 0)
    for rng in rngs(4000):
        inputs, labels = noising.mask(ids, rng, MASK, ORDINARY)
        chosen = labels != PAD
        assert (labels[chosen] == ids[chosen]).all() and (inputs[~chosen] == ids[~chosen]).all()
        assert chosen.sum() == 6  # 15 % of 40
        counts["chosen"] += chosen.sum()
        counts["masked"] += (inputs[chosen] == MASK).sum()
        counts["kept"] += (inputs[chosen] == ids[chosen]).sum()
        counts["other"] += ((inputs != MASK) & (inputs != ids))[chosen].sum()
    n = counts["chosen"]
    # a replaced token may by chance be the same again: 1 of 95
    expected = (0.8 * n, (0.1 + 0.1 / 95) * n, 0.1 * 94 / 95 * n)
    found = (counts["masked"], counts["kept"], counts["other"])
    assert_distributed(found, expected)


def test_mask_of_odd_lengths_has_the_share_on_average_and_hides_every_place_alike():
    ids, places = sentence(13), np.zeros(13)
    for rng in rngs(6000):
        places += noising.mask(ids, rng, MASK, ORDINARY)[1] != PAD
    assert places.sum() / (6000 * 13) == pytest.approx(0.15, abs=0.003)
    assert_distributed(places)


def test_mask_of_whole_words():
    ids = sentence(60)
    starts = np.random.default_rng(2).random(60) < 0.5
    starts[0] = True
    words = np.cumsum(starts)
    for rng in rngs(200):
        chosen = noising.mask(ids, rng, MASK, ORDINARY, starts=starts)[1] != PAD
        for word in set(words):
            assert chosen[words == word].all() or not chosen[words == word].any()
        assert 1 <= chosen.sum() <= 9
    one = noising.mask(ids, rng, MASK, ORDINARY, starts=np.arange(60) == 0)[1]
    assert (one == ids).all()  # a word that is more than its share, for else there were no loss


def spans_of(ids, noised):
    """Lengths of the spans that masks stand for; ids are all different."""
    kept = {token: place for place, token in enumerate(ids)}
    spans, place = [], 0
    for here, token in enumerate(noised):
        if token == MASK:
            follows = noised[here + 1 :]
            end = next((kept[t] for t in follows if t in kept), len(ids))
            spans.append(end - place)
            place = end
        else:
            assert kept[token] == place  # nothing else was changed
            place += 1
    assert place == len(ids)
    return spans


def test_infilling_covers_30_percent_in_spans_of_poisson_lengths():
    ids = np.arange(100, 600)
    lengths, covered = [], []
    for rng in rngs(60):
        spans = spans_of(ids, noising.infill(ids, rng, MASK))
        covered.append(sum(spans))
        lengths += spans
    assert set(covered) == {150}
    # The last span drawn is cut to fit: one in fifty of them, so the bounds are wider than those of chance.
    assert np.mean(lengths) == pytest.approx(3, abs=0.12)
    bins = np.bincount(np.minimum(lengths, 8), minlength=9) / len(lengths)
    poisson = np.array([math.exp(-3) * 3**n / math.factorial(n) for n in range(8)])
    np.testing.assert_allclose(bins, [*poisson, 1 - poisson.sum()], atol=0.02)


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_infilling_of_short_sentences(length):
    ids = np.arange(100, 100 + length)
    for rng in rngs(300):
        spans = spans_of(ids, noising.infill(ids, rng, MASK))
        assert spans and sum(spans) <= length


def test_masks_that_infilling_inserts_make_no_sentence_too_long():
    """A sentence of data.max_length tokens got more, for which a model has no positions, in the middle of a run."""
    ids = np.arange(100, 120)
    lengths = [[len(noising.infill(ids, rng, MASK, 0.5, 1.0, longest)) for rng in rngs(300)]
               for longest in (20, 22, math.inf)]  # fmt: skip
    assert [max(found) for found in lengths[:2]] == [20, 22] and max(lengths[2]) > 24
    assert max(map(min, lengths)) < 18
    short = [len(noising.infill(ids[:9], rng, MASK, 0.5, 1.0, 20)) for rng in rngs(300)]
    assert short == [len(noising.infill(ids[:9], rng, MASK, 0.5, 1.0)) for rng in rngs(300)]


def test_deletion_and_shuffling():
    ids = np.arange(100, 150)
    gone = [1 - len(noising.delete(ids, rng, 0.2)) / 50 for rng in rngs(400)]
    assert np.mean(gone) == pytest.approx(0.2, abs=0.01)
    assert len(noising.delete(ids, next(rngs(1)), 1.0)) == 1
    furthest = 0
    for rng in rngs(200):
        moved = noising.shuffle(ids, rng, 3)
        assert sorted(moved) == ids.tolist()
        furthest = max(furthest, np.abs(moved - 100 - np.arange(50)).max())
    assert furthest == 3
    assert (noising.shuffle(ids, next(rngs(1)), 0) == ids).all()


def restored(source, target, sentinels):
    """The text: each sentinel of the source replaced by what follows it in the target."""
    spans, order = {}, []
    for token in target.tolist():
        if token in sentinels:
            order.append(token)
            spans[token] = []
        else:
            spans[order[-1]].append(token)
    assert spans[order[-1]] == [] and order == sentinels[: len(order)]
    used = [t for t in source.tolist() if t in sentinels]
    assert used == order[:-1]
    text = [x for t in source.tolist() for x in (spans[t] if t in sentinels else [t])]
    return text, [len(spans[t]) for t in used]


@pytest.mark.parametrize("length", [1, 2, 3, 8, 20, 200])
def test_corrupted_spans_are_what_was_cut_out(length):
    sentinels = [99, 98, 97, *range(1000, 1030)]
    ids = np.arange(100, 100 + length)
    lengths = []
    for rng in rngs(300):
        source, target = noising.corrupt_spans(ids, rng, np.array(sentinels))
        text, spans = restored(source, target, sentinels)
        assert text == ids.tolist() and min(spans) >= 1
        # two sentinels never meet: else they would be one span
        places = np.isin(source, sentinels)
        assert not (places[1:] & places[:-1]).any()
        lengths.append(spans)
    if length == 200:
        assert {sum(spans) for spans in lengths} == {30} and {len(s) for s in lengths} == {10}


@pytest.mark.parametrize(("cut", "spans"), [(17, 6), (16, 5), (14, 5)])
def test_corrupted_spans_have_the_mean_that_is_nearest(cut, spans):
    ids, sentinels = np.arange(100, 200), np.arange(30)
    share = cut / 100 + 1e-9
    source, _ = noising.corrupt_spans(ids, next(rngs(1)), sentinels, share, mean=3.0)
    assert np.isin(source, sentinels).sum() == spans and len(source) == 100 - cut + spans


@pytest.mark.parametrize("share", [0.15, 0.7, 1.0])
@pytest.mark.parametrize("mean", [0.5, 1.0, 3.0])
def test_sentinels_make_no_target_too_long(share, mean):
    """It had more tokens than data.max_length; and spans shorter than a token on average were an exception."""
    sentinels = list(range(1000, 1100))
    for length in (1, 3, 4, 40, 100):
        ids = np.arange(100, 100 + length)
        for rng in rngs(50):
            source, target = noising.corrupt_spans(
                ids, rng, np.array(sentinels), share, mean, max(length, 3)
            )
            assert restored(source, target, sentinels)[0] == ids.tolist()
            assert max(len(source), len(target)) <= max(length, 3)


def test_corrupted_spans_fall_everywhere_alike_often():
    """Of 6 tokens, 2 in 1 span: 5 places, each as likely; in 2 spans: 10 pairs of places not adjacent."""
    ids, sentinels = np.arange(100, 106), np.arange(4)
    for mean, ways in ((2.0, 5), (1.0, 10)):
        seen: dict[tuple, int] = {}
        for rng in rngs(5000):
            source, _ = noising.corrupt_spans(ids, rng, sentinels, share=2 / 6 + 1e-9, mean=mean)
            if len(source) == 4 + ways // 5:
                seen[tuple(source)] = seen.get(tuple(source), 0) + 1
        assert len(seen) == ways
        assert_distributed(list(seen.values()))


def test_few_sentinels_are_enough_for_long_sentences():
    source, target = noising.corrupt_spans(np.arange(100, 300), next(rngs(1)), np.array([1, 2, 3]))
    assert restored(source, target, [1, 2, 3])[0] == list(range(100, 300))
