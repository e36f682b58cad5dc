"""Where two systems differ: by length of the sentence, by frequency of the word, and in which sentences.

Follows compare-mt (Neubig et al. 2019): F-measure of words by their frequency, scores by length of the reference.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtplug.evaluation.files import named_metrics
from mtplug.evaluation.metrics import Metric, counted
from mtplug.evaluation.words import is_unspaced, words

LENGTHS = (6, 11, 16, 21, 31, 41, 61)  # where a bucket begins, in words; twice this in characters
FREQUENCIES = (1, 2, 3, 4, 5, 10, 100, 1000)
BINS = 21  # of a histogram of differences


@dataclass
class Bucket:
    """One row of a table: what it holds, how much of it, and a value for each system.

    Attributes:
        label: such as `6–10`.
        count: sentences, or words of the reference.
        values: by system, in their order; None where there is nothing to measure.
    """

    label: str
    count: int
    values: list[float | None]


def by_length(
    metric: Metric,
    systems: list[list[str]],
    references: list[list[str]],
    sources: list[str] | None = None,
) -> list[Bucket]:
    """Scores of sentences grouped by the length of their first reference.

    Returns:
        Buckets that hold a sentence; none for a metric whose score is not made of sums.
    """
    found = [counted(metric, system, references, sources) for system in systems]
    starts = [2 * n - 1 if is_unspaced(references[0]) else n for n in LENGTHS]
    place = np.array([bisect_right(starts, len(words(text))) for text in references[0]])
    buckets = []
    for number, label in enumerate(_labels(starts)):
        inside = place == number
        if inside.any() and None not in found:
            values: list[float | None] = [
                score(rows[inside].sum(0)) for rows, score in (f for f in found if f)
            ]
            buckets.append(Bucket(label, int(inside.sum()), values))
    return buckets


def by_frequency(
    systems: list[list[str]], reference: list[str], counted: list[str] | None = None
) -> list[Bucket]:
    """F-measure of words, in percent, grouped by how often they occur.

    A word of a translation is right as often as its sentence's reference has it too.

    Args:
        counted: the text that frequencies are counted in, such as training data; None: the reference.
    """
    seen = Counter(word for line in (counted or reference) for word in words(line))
    wanted = [Counter(words(line)) for line in reference]

    def grouped(counters: list[Counter]) -> np.ndarray:
        totals = np.zeros(len(FREQUENCIES) + 1)
        for counter in counters:
            for word, times in counter.items():
                totals[bisect_right(FREQUENCIES, seen[word])] += times
        return totals

    there = grouped(wanted)
    columns = []
    for system in systems:
        given = [Counter(words(line)) for line in system]
        right = grouped([a & b for a, b in zip(given, wanted, strict=True)])
        both = grouped(given) + there
        columns.append([200 * r / b if b else None for r, b in zip(right, both, strict=True)])
    return [
        Bucket(label, int(there[i]), [column[i] for column in columns])
        for i, label in enumerate(_labels(FREQUENCIES))
        if there[i]  # where the reference has no word, nothing can be right
    ]


def sentence_scores(hypotheses: list[str], references: list[list[str]]) -> np.ndarray:
    """chrF2++ of each sentence."""
    found = named_metrics("chrf")[0].statistics(hypotheses, references)
    assert found is not None, "chrF is made of sums"
    rows, score = found
    return np.array([score(row) for row in rows])


def histogram(differences: np.ndarray) -> list[tuple[float, float, int]]:
    """(from, to, how many) with a bin around zero, as many to its left as to its right.

    Bins are as wide as 98 % of the differences need; the outermost hold what lies beyond.
    """
    reach = float(np.percentile(np.abs(differences), 98)) if len(differences) else 0.0
    width = next((w for w in (0.5, 1, 2, 3, 4, 5, 8) if w * BINS / 2 >= reach), 10)
    half = BINS // 2
    place = np.clip(np.round(differences / width), -half, half).astype(int)
    counts = Counter(place.tolist())
    return [((i - 0.5) * width, (i + 0.5) * width, counts[i]) for i in range(-half, half + 1)]


def _labels(starts: Sequence[int]) -> list[str]:
    """`0`, `1–4`, …, `1000 and more` for groups that begin at 0 and at each of `starts`."""
    edges = itertools.pairwise([0, *starts])
    labels = [str(a) if b == a + 1 else f"{a}–{b - 1}" for a, b in edges]
    return [*labels, f"{starts[-1]} and more"]
