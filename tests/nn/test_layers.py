"""Dropout and absolute positions against their definitions."""

import math

import pytest
import torch

from mtplug.nn.dropout import dropout
from mtplug.nn.positions import Learned, LearnedConfig, Sinusoidal, Stack
from mtplug.registry import NoConfig


def test_sinusoidal_table_is_the_papers_formula():
    table = Sinusoidal(NoConfig(), Stack(6, 1, 1, False)).embed(3, 2)
    for row, position in zip(table, (3, 4), strict=True):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert row[2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert row[2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_sinusoidal_rows_do_not_depend_on_what_was_asked_before():
    grown = Sinusoidal(NoConfig(), Stack(8, 1, 1, False))
    grown.embed(0, 3)
    assert torch.equal(
        grown.embed(2000, 5), Sinusoidal(NoConfig(), Stack(8, 1, 1, False)).embed(2000, 5)
    )


def test_a_table_made_by_a_search_can_be_written_to_in_training():
    """The trial of the largest batch restores all buffers; a criterion may search before."""
    positions = Sinusoidal(NoConfig(), Stack(8, 1, 1, False))
    with torch.inference_mode():
        rows = positions.embed(0, 3).clone()
    positions.table.copy_(positions.table.clone())
    assert torch.equal(positions.embed(0, 3), rows)


def test_learned_positions_beyond_the_table_are_an_error():
    from mtplug.errors import UserError

    table = Learned(LearnedConfig(max_positions=4), Stack(8, 1, 1, False))
    assert table.embed(1, 3).shape == (3, 8)
    with pytest.raises(UserError, match="max_positions is 4"):
        table.embed(2, 3)


def test_dropout_keeps_the_mean_and_its_share():
    torch.manual_seed(0)
    x = dropout(torch.ones(400_001), 0.3, True)
    zeros = (x == 0).float().mean().item()
    assert zeros == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 400_001))
    kept = x[x != 0]
    assert torch.equal(kept, kept[:1].expand_as(kept))
    assert kept[0].item() == pytest.approx(1 / 0.7, rel=1e-4)


def test_dropout_masks_of_neighbours_are_independent():
    torch.manual_seed(1)
    kept = (dropout(torch.ones(400_000), 0.5, True) != 0).double()
    for lag in (1, 2, 3, 4):  # four elements share one draw
        together = (kept[:-lag] * kept[lag:]).mean().item()
        assert together == pytest.approx(0.25, abs=0.004)


def test_dropout_follows_the_seed_and_is_off_in_evaluation():
    x = torch.randn(37)
    torch.manual_seed(5)
    first = dropout(x, 0.4, True)
    torch.manual_seed(5)
    assert torch.equal(first, dropout(x, 0.4, True))
    assert dropout(x, 0.4, False) is x
