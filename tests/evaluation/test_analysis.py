"""Words, buckets and differences, against values worked out by hand and sacreBLEU's."""

import numpy as np
import pytest
import sacrebleu

from mtplug.evaluation.analysis import (
    LENGTHS,
    by_frequency,
    by_length,
    histogram,
    sentence_scores,
)
from mtplug.evaluation.files import named_metrics
from mtplug.evaluation.words import differing, is_unspaced, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't pay 3.50, he said!", ["Don't", "pay", "3.50", ",", "he", "said", "!"]),
        ("我有iPhone。", ["我", "有", "iPhone", "。"]),
        ("が走る", ["か\u3099", "走", "る"]),  # the mark stays with its letter
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("한국어 문장.", ["한국어", "문장", "."]),
        ("  ", []),
    ],
)
def test_words_of_several_scripts(text, expected):
    assert words(text.replace("が", "か\u3099")) == expected


def test_unspaced_text_is_recognised():
    assert is_unspaced(["彼は走る", "OK"]) and not is_unspaced(["He runs 走", "well"])


def test_differing_parts_are_those_the_other_lacks():
    text = "a big dog runs"
    assert [text[a:b] for a, b in differing(text, "the dog runs")] == ["a big"]
    assert [("猫が好き"[a:b]) for a, b in differing("猫が好き", "犬が好き")] == ["猫"]
    assert differing("same", "same") == []


def test_buckets_by_length_are_scored_as_corpora_of_their_own():
    reference = ["one two three", "a b c d e f g", "four five", "h i j k l m n o"]
    system = ["one two", "a b c d x f g", "four", "h i j k y m n o"]
    (metric,) = named_metrics("bleu")
    short, longer = by_length(metric, [system, reference], [reference])
    assert (short.label, short.count, longer.label, longer.count) == ("0–5", 2, "6–10", 2)
    of = [[side[1], side[3]] for side in (system, reference)]
    assert longer.values[0] == pytest.approx(sacrebleu.corpus_bleu(of[0], [of[1]]).score)
    assert longer.values[1] == pytest.approx(100)


@pytest.mark.parametrize(("word", "times"), [("w ", 1), ("人", 2)])
def test_buckets_begin_where_their_labels_say(word, times):
    """Texts without spaces have about twice as many words, as they are counted."""
    (metric,) = named_metrics("chrf")
    starts = [times * n - (times - 1) for n in LENGTHS]
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        texts = [word * (start - 1), word * start]
        below, at = by_length(metric, [texts], [texts])
        assert below.label.endswith(f"–{start - 1}")
        assert at.label == (f"{start}–{following - 1}" if following else f"{start} and more")


def test_f_measure_by_frequency_is_that_of_hand():
    """the: twice in the reference, three times given, right twice: F = 2·2 / (2 + 3). cat: right once of 1 and 1. dog: wrong."""
    reference, system = ["the cat", "the dog"], ["the the cat", "the hen"]
    once, twice = by_frequency([system], reference)
    assert (once.label, once.count, twice.label, twice.count) == ("1", 2, "2", 2)
    assert once.values == [pytest.approx(200 * 1 / (2 + 1))]
    assert twice.values == [pytest.approx(200 * 2 / (2 + 3))]
    # counted elsewhere, `dog` was never seen and `cat` ten times
    unseen, _, often = by_frequency([system], reference, ["cat " * 10 + "the"])
    assert (unseen.label, unseen.values) == ("0", [0]) and often.label == "10–99"


def test_sentence_scores_are_sacrebleus():
    hypotheses, references = ["a dog runs", "xx"], [["the dog runs", "yy"], ["a dog ran", "xx"]]
    expected = [
        sacrebleu.sentence_chrf(h, [side[i] for side in references], word_order=2).score
        for i, h in enumerate(hypotheses)
    ]
    assert sentence_scores(hypotheses, references) == pytest.approx(expected)


def test_histogram_counts_everything_once_and_is_centred():
    differences = np.random.default_rng(0).normal(2, 9, 500)
    bins = histogram(differences)
    assert sum(count for *_, count in bins) == 500
    assert bins[10][0] == -bins[10][1] and bins[0][0] == -bins[-1][1]
    for low, high, count in bins[1:-1]:
        assert count == ((differences > low) & (differences < high)).sum()
    assert histogram(np.zeros(4))[10][2] == 4
