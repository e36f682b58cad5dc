"""Schedules against their closed forms."""

import math

import pytest

from mtplug.optim.schedules import (
    Constant,
    Cosine,
    CosineConfig,
    InverseSqrt,
    InverseSqrtConfig,
    WarmupConfig,
)


def test_inverse_square_root_is_the_papers_formula():
    """Vaswani et al. 2017, equation 3, divided by its peak."""
    schedule = InverseSqrt(InverseSqrtConfig(warmup_updates=400), 10_000)
    for update in (1, 17, 399, 400, 401, 5000):
        formula = min(update**-0.5, update * 400**-1.5) / 400**-0.5
        assert schedule(update) == pytest.approx(formula)


def test_cosine_goes_from_peak_to_final():
    schedule = Cosine(CosineConfig(warmup_updates=10, final=0.1), 110)
    assert [schedule(u) for u in (5, 10, 60, 110, 500)] == pytest.approx([0.5, 1, 0.55, 0.1, 0.1])
    quarter = 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2
    assert schedule(35) == pytest.approx(quarter)


def test_without_warm_up_the_first_update_has_the_peak():
    assert InverseSqrt(InverseSqrtConfig(warmup_updates=0), 10)(1) == 1
    assert Constant(WarmupConfig(warmup_updates=0), 10)(1) == 1
    with pytest.raises(ValueError, match="negative"):
        WarmupConfig(warmup_updates=-1)
