"""Is a difference between two systems more than chance? Paired bootstrap and approximate randomisation.

Both draw with numpy's generator in the order of sacreBLEU's `PairedTest`, so that the same seed and number of samples give
the p that `sacrebleu --paired-bs` and `--paired-ar` print. One thing differs: a sample that is exactly as extreme as what
was observed counts (Noreen 1989; Riezler and Maxwell 2005), while sacreBLEU counts only larger ones, and so
finds a system significantly different from itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

SAMPLES = {"bootstrap": 1000, "randomisation": 10000}
"""How many samples each test draws unless told; sacreBLEU's numbers."""

ROWS = 256  # of samples at a time: bounds memory; a multiple of 32, the bits that one draw gives
SAME = 1e-9  # sums in another order are not different scores

Statistics = tuple[np.ndarray, Callable[[np.ndarray], float]] | None
"""What `Metric.statistics` gives."""


@dataclass
class Difference:
    """How a system differs from a baseline.

    Attributes:
        baseline: the baseline's score.
        difference: the system's score minus the baseline's.
        interval: 95 % of the bootstrap's resamples differ by this much; None after randomisation.
        p: how probable so large a difference is between systems that do not differ.
        test: `bootstrap` or `randomisation`, with `samples` drawn from `seed`.
    """

    baseline: float
    difference: float
    interval: list[float] | None
    p: float
    test: str
    samples: int
    seed: int


def difference(
    ours: Statistics, theirs: Statistics, test: str, samples: int = 0, seed: int = 12345
) -> Difference | None:
    """Test the difference between a system and a baseline.

    Args:
        ours, theirs: what `Metric.statistics` gives for the translations of each.
        test: `bootstrap` (Koehn 2004, p as in Riezler and Maxwell 2005, figure 2) or `randomisation` (their
            figure 1), which swaps the systems' translations of random sentences.
        samples: how many resamples or swaps; 0: `SAMPLES`.

    Returns:
        None for a metric whose score is not made of sums over sentences.
    """
    if ours is None or theirs is None:
        return None
    (system, score), (base, _) = ours, theirs
    samples = samples or SAMPLES[test]
    rng = np.random.default_rng(seed)
    before = score(base.sum(0))
    observed = score(system.sum(0)) - before
    draw = _resampled if test == "bootstrap" else _swapped
    pairs = [(score(a), score(b)) for a, b in draw(system, base, samples, rng)]
    differences = np.array([a - b for a, b in pairs])
    sizes, interval = np.abs(differences), None
    if test == "bootstrap":
        interval = [float(x) for x in np.percentile(differences, [2.5, 97.5])]
        sizes = sizes - sizes.mean()
    extreme = int((sizes >= abs(observed) - SAME).sum())
    p = (extreme + 1) / (samples + 1)
    return Difference(before, observed, interval, p, test, samples, seed)


Sums = Iterator[tuple[np.ndarray, np.ndarray]]


def _resampled(
    system: np.ndarray, base: np.ndarray, samples: int, rng: np.random.Generator
) -> Sums:
    """Sums over as many sentences as there are, drawn with replacement, the same for both systems."""
    count = len(system)
    for start in range(0, samples, ROWS):
        rows = min(ROWS, samples - start)
        picks = rng.choice(count, size=(rows, count), replace=True)
        times = np.stack([np.bincount(pick, minlength=count) for pick in picks]).astype(float)
        yield from zip(times @ system, times @ base, strict=True)


def _swapped(system: np.ndarray, base: np.ndarray, samples: int, rng: np.random.Generator) -> Sums:
    """Sums over all sentences, each system's or the other's with equal chance."""
    both = system.sum(0) + base.sum(0)
    for start in range(0, samples, ROWS):
        rows = min(ROWS, samples - start)
        swap = rng.integers(2, size=(rows, len(system)), dtype=bool)
        ours = system.sum(0) + swap.astype(float) @ (base - system)
        yield from zip(ours, both - ours, strict=True)
