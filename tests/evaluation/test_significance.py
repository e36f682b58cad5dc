"""Tests of significance against sacreBLEU's and against the enumeration of all swaps."""

import itertools
import random

import numpy as np
import pytest
import sacrebleu.significance
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

from mtplug.evaluation.files import named_metrics
from mtplug.evaluation.metrics import Metric, Score
from mtplug.evaluation.significance import difference


def compare(metric, system, baseline, references, *how):
    return difference(*(metric.statistics(s, references) for s in (system, baseline)), *how)


WORDS = [
    "a",
    "the",
    "dog",
    "man",
    "runs",
    "over",
    "grass",
    "with",
    "hat",
    "red",
    "old",
    "two",
    "women",
    "sit",
]


def corpora(sentences, seed=3, noise=(0.3, 0.35)):
    rng = random.Random(seed)
    reference = [" ".join(rng.choices(WORDS, k=rng.randint(5, 12))) for _ in range(sentences)]
    systems = [
        [" ".join(rng.choice(WORDS) if rng.random() < p else w for w in r.split()) for r in reference]
        for p in noise
    ]  # fmt: skip
    return *systems, reference


@pytest.mark.parametrize(("test", "short", "samples"), [("bootstrap", "bs", 300), ("randomisation", "ar", 300)])  # fmt: skip
@pytest.mark.parametrize(("name", "theirs"), [("bleu", BLEU()), ("chrf", CHRF(word_order=2)), ("ter", TER())])  # fmt: skip
def test_p_is_that_of_sacrebleu_with_the_same_seed(test, short, samples, name, theirs, monkeypatch):
    """TER has few values: there, unlike sacreBLEU, samples exactly as extreme as what was observed count."""
    monkeypatch.setenv("SACREBLEU_SEED", "77")
    if name == "ter":
        monkeypatch.setattr(
            sacrebleu.significance,
            "_compute_p_value",
            lambda sizes, seen: ((sizes >= seen - 1e-9).sum() + 1) / (len(sizes) + 1),
        )
    system, baseline, reference = corpora(45, noise=(0.3, 0.38))
    found = compare(named_metrics(name)[0], system, baseline, [reference], test, samples, 77)
    paired = PairedTest(
        [("b", baseline), ("s", system)], {name: theirs}, [reference], short, samples
    )
    _, results = paired()
    before, after = next(v for k, v in results.items() if k != "System")
    assert found.baseline == pytest.approx(before.score)
    assert found.difference == pytest.approx(after.score - before.score)
    assert 0.01 < after.p_value < 0.99
    assert found.p == pytest.approx(after.p_value)


@pytest.mark.parametrize("name", ["bleu", "ter", "length_ratio"])
def test_randomisation_estimates_the_share_of_all_swaps(name):
    """Of 8 sentences there are 256 ways to swap."""
    system, baseline, reference = corpora(8, noise=(0.1, 0.4))
    (metric,) = named_metrics(name)

    def score(lines):
        return metric.score(list(lines), [reference]).value

    pairs = list(zip(system, baseline, strict=True))
    sizes = np.array([
        abs(score(p[s] for p, s in zip(pairs, swap, strict=True))
            - score(p[1 - s] for p, s in zip(pairs, swap, strict=True)))
        for swap in itertools.product((0, 1), repeat=8)
    ])  # fmt: skip
    exact = (sizes >= abs(score(system) - score(baseline)) - 1e-9).mean()
    found = compare(metric, system, baseline, [reference], "randomisation", 4000, 1)
    assert found.p == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 4000) ** 0.5 + 1e-3)


@pytest.mark.parametrize("test", ["bootstrap", "randomisation"])
def test_a_system_does_not_differ_from_itself(test):
    system, _, reference = corpora(10)
    for metric in named_metrics():
        found = compare(metric, system, system, [reference], test, 64)
        assert (found.difference, found.p) == (0, 1)
        assert found.interval == ([0, 0] if test == "bootstrap" else None)


def test_interval_is_that_of_resamples_scored_one_by_one():
    """A metric that is a mean: its resamples are means of picked rows."""

    class Mean(Metric):
        label = "mean"

        def statistics(self, hypotheses, references):
            return np.array([[float(h), 1.0] for h in hypotheses]), lambda t: t[0] / t[1]

        def score(self, hypotheses, references):
            return Score("mean", sum(map(float, hypotheses)) / len(hypotheses), "mean", "mean")

    rng = random.Random(5)
    ours, theirs = ([str(rng.random()) for _ in range(30)] for _ in range(2))
    found = compare(Mean(), ours, theirs, [theirs], "bootstrap", 600, 9)
    gain = np.array(ours, dtype=float) - np.array(theirs, dtype=float)
    picks = np.random.default_rng(9).choice(30, size=(600, 30))
    assert found.interval == pytest.approx(np.percentile(gain[picks].mean(1), [2.5, 97.5]))


def test_a_metric_without_sums_is_not_tested():
    class Whole(Metric):
        label = "whole"

        def score(self, hypotheses, references):
            return Score("whole", 1.0, "whole", "whole")

    assert compare(Whole(), ["a"], ["b"], [["a"]], "bootstrap") is None
