"""Schedules against their closed forms."""

import math
import random

import pytest
import torch

from mtplug.config import component_from_overrides
from mtplug.optim.adam import AdamConfig
from mtplug.optim.decay import Linear, LinearConfig, Polynomial, PolynomialConfig
from mtplug.optim.muon import MuonConfig
from mtplug.optim.schedule_free import ScheduleFreeConfig
from mtplug.optim.schedules import (
    Constant,
    Cosine,
    CosineConfig,
    InverseSqrt,
    InverseSqrtConfig,
    Plateau,
    PlateauConfig,
    Step,
    StepConfig,
    WarmupConfig,
    still_rising,
)
from mtplug.optim.stages import WSD, TriStage, TriStageConfig, WSDConfig
from mtplug.registry import NoConfig


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


def test_linear_and_polynomial_are_their_formulas():
    line = Linear(LinearConfig(warmup_updates=10, final=0.2), 110)
    assert [line(u) for u in (5, 10, 60, 110, 500)] == pytest.approx([0.5, 1, 0.6, 0.2, 0.2])
    cubic = Polynomial(PolynomialConfig(warmup_updates=10, final=0.2, power=3), 110)
    for update in (10, 11, 60, 85, 110):
        assert cubic(update) == pytest.approx(0.2 + 0.8 * ((110 - update) / 100) ** 3)
    assert Linear(LinearConfig(warmup_updates=0, updates=50), 10)(25) == pytest.approx(0.5)


def test_steps_fall_where_torchs_do():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.3)
    schedule = Step(StepConfig(warmup_updates=0, every=7, factor=0.3), 100)
    for update in range(1, 60):
        optimizer.step()
        theirs.step()
        assert schedule(update) == pytest.approx(optimizer.param_groups[0]["lr"])
    later = Step(StepConfig(warmup_updates=10, start=20, every=5, factor=0.5), 100)
    found = [later(u) for u in (5, 10, 19, 20, 24, 25, 30)]
    assert found == [0.5, 1, 1, 0.5, 0.5, 0.25, 0.125]
    with pytest.raises(ValueError, match="every must be at least 1"):
        StepConfig(every=0)


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_plateau_falls_where_torchs_does(patience):
    """torch falls when more than its patience were not better; its first value is always better."""
    schedule = Plateau(PlateauConfig(warmup_updates=10, patience=patience, final=0.05), 100)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience - 1, threshold=0.0, min_lr=0.05
    )
    rng, best, seen = random.Random(patience), math.inf, set()
    for update in range(10, 60):
        loss = rng.random() + 10 / update
        theirs.step(loss)
        schedule.validated(loss < best)
        best = min(best, loss)
        assert schedule(update) == optimizer.param_groups[0]["lr"]
        seen.add(schedule(update))
    assert len(seen) > 2 and schedule(5) == 0.5


@pytest.mark.parametrize("shape", ["sqrt", "linear"])
def test_wsd_holds_the_peak_and_falls_in_its_last_share(shape):
    schedule = WSD(WSDConfig(warmup_updates=20, decay=0.25, shape=shape, final=0.1), 200)
    assert [schedule(u) for u in (10, 20, 100, 150)] == [0.5, 1, 1, 1]
    for update in (151, 162, 187, 200, 300):
        done = min((update - 150) / 50, 1)
        assert schedule(update) == pytest.approx(1 - 0.9 * (done**0.5 if shape == "sqrt" else done))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("cosine", []), ("linear", []), ("polynomial", []), ("wsd", ["decay=0"]), ("tri_stage", ["hold=1"])],
)  # fmt: skip
def test_a_fall_of_no_length_leaves_the_peak_to_the_last_update(name, settings):
    settings = [*settings, "warmup_updates=50" if name != "wsd" else "warmup_updates=10"]
    schedule = component_from_overrides("lr_schedulers", name, settings).build(50)
    assert schedule(49) == (1 if name == "wsd" else 49 / 50)
    assert all(0 <= schedule(update) <= 1 for update in (50, 51, 500))
    assert name != "wsd" or schedule(50) == 1


def test_tri_stage_decays_exponentially():
    """fairseq's: decay_factor = -ln(final) / decay_steps, lr = peak · exp(-decay_factor · steps)."""
    schedule = TriStage(TriStageConfig(warmup_updates=10, hold=0.4, final=0.01), 100)
    assert [schedule(u) for u in (5, 10, 30, 50)] == [0.5, 1, 1, 1]
    for update in (51, 75, 100):
        assert schedule(update) == pytest.approx(math.exp(math.log(0.01) / 50 * (update - 50)))
    assert schedule(400) == pytest.approx(0.01)


WARMING = ["constant", "inverse_sqrt", "cosine", "step", "plateau", "linear", "polynomial", "wsd", "tri_stage"]  # fmt: skip


@pytest.mark.parametrize("name", WARMING)
def test_a_warm_up_that_is_longer_than_the_run_is_told(name):
    for warmup, updates in ((4000, 1000), (51, 50), (50, 51), (50, 999), (0, 50), (40, 1), (4, 2)):
        chosen = component_from_overrides("lr_schedulers", name, [f"warmup_updates={warmup}"])
        notes = still_rising(chosen.build(updates), chosen.config, updates)
        assert len(notes) == (warmup > updates > 1)
        for note in notes:
            assert f"training.max_updates={updates}, lr_scheduler.warmup_updates={warmup}" in note
            assert f"it is {updates / warmup:.0%} of its peak" in note and "\n" not in note


def test_of_a_schedule_of_another_make_only_its_factors_count():
    asked = []

    def cycles(update):
        asked.append(update)
        return (update % 1500) / 1500

    for last, tells in ((1000, True), (1500, False), (1600, False), (2999, False), (1499, True)):
        assert len(still_rising(cycles, NoConfig(), last)) == tells, last
    assert still_rising(Constant(WarmupConfig(warmup_updates=50), 50), NoConfig(), 50)
    assert not still_rising(lambda update: 1 / update, NoConfig(), 100)
    assert not still_rising(lambda update: 1.0, NoConfig(), 100)
    (note,) = still_rising(lambda update: update / 10**9, NoConfig(), 10**7)
    assert note.endswith("it is 1% of its peak: training.max_updates=10000000")
    asked.clear()
    still_rising(cycles, NoConfig(), 10**7)
    assert min(asked) == 1 and len(asked) < 1100  # no time is lost


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: LinearConfig(final=1.5),
        lambda: CosineConfig(final=-1),
        lambda: CosineConfig(updates=-5),
        lambda: WSDConfig(updates=-5),
        lambda: AdamConfig(beta1=1),
        lambda: MuonConfig(beta2=1),
        lambda: ScheduleFreeConfig(beta2=1),
        lambda: PolynomialConfig(power=0),
        lambda: WSDConfig(decay=2),
        lambda: TriStageConfig(final=0),
    ],
)
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        wrong()
