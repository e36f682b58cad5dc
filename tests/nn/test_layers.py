"""Dropout, positions and initial weights against their definitions."""

import math

import pytest
import torch
from mtplug_kernels import positions, reference
from torch import nn

from mtplug.errors import UserError
from mtplug.nn import relative
from mtplug.nn.attention import MultiHeadAttention
from mtplug.nn.dropout import dropout
from mtplug.nn.positions import Learned, LearnedConfig, Sinusoidal, Stack
from mtplug.registry import NoConfig


@pytest.mark.parametrize("dim", [6, 7])
def test_sinusoidal_table_is_the_papers_formula(dim):
    table = Sinusoidal(NoConfig(), Stack(dim, 1, 1, False)).embed(3, 2)
    for row, position in zip(table, (3, 4), strict=True):
        for c in range(dim):
            angle = position / 10000 ** (2 * (c // 2) / dim)
            wave = math.cos(angle) if c % 2 else math.sin(angle)
            assert row[c].item() == pytest.approx(wave, abs=1e-6)


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
    table = Learned(LearnedConfig(max_positions=4), Stack(8, 1, 1, False))
    assert table.embed(1, 3).shape == (3, 8)
    assert torch.equal(table.embed(1, 3), table.weight[1:])
    assert table.limit == 4
    with pytest.raises(UserError, match="max_positions is 4"):
        table.embed(2, 3)


def test_deberta_is_the_papers_equation_of_its_own_maps():
    """Equations 3 and 4 of He et al. (2021): δ(i, j) looks up what a query sees, δ(j, i) what a key sees."""
    torch.manual_seed(2)
    limit, heads, size, length = 3, 2, 4, 9
    made = relative.Deberta(relative.DebertaConfig(limit), Stack(8, heads, 2, False)).double()
    for layer in (0, 1):
        nn.init.normal_(made.q[layer].bias)
        nn.init.normal_(made.k[layer].bias)
        q, k, v = torch.randn(3, 1, heads, length, size, dtype=torch.float64)
        of_keys = made.k[layer](made.table).unflatten(-1, (heads, size))
        of_queries = made.q[layer](made.table).unflatten(-1, (heads, size))

        def delta(i, j):
            return max(-limit, min(limit, i - j)) + limit

        scores = torch.zeros(heads, length, length, dtype=torch.float64)
        for h in range(heads):
            for i in range(length):
                for j in range(length):
                    content = q[0, h, i] @ k[0, h, j]
                    to_position = q[0, h, i] @ of_keys[delta(i, j), h]
                    to_content = k[0, h, j] @ of_queries[delta(j, i), h]
                    scores[h, i, j] = (content + to_position + to_content) / math.sqrt(3 * size)
        schemes = made.schemes(layer)
        found = reference.attention(q, k, v, schemes, scale=made.score_scale)
        torch.testing.assert_close(found[0], scores.softmax(-1) @ v[0])


def test_settings_of_an_encoding_reach_its_scheme():
    encoder, decoder = Stack(16, 2, 3, False), Stack(16, 2, 3, True)
    for stack in (encoder, decoder):
        t5 = relative.T5Bias(relative.T5BiasConfig(8, 20), stack)
        (bias,) = t5.schemes(2)
        # whose buckets are those of the published function: tests/kernels/test_reference.py
        expected = positions.t5_table(t5.weight, not stack.causal, 20)
        assert torch.equal(bias.table, expected)
    (turned,) = relative.Rope(relative.RopeConfig(500.0), encoder).schemes(0)
    assert turned == positions.Rotary(500.0)
    with pytest.raises(UserError, match="rope needs an even head size"):
        relative.Rope(relative.RopeConfig(), Stack(6, 2, 1, False))
    (slopes,) = relative.Alibi(NoConfig(), encoder).schemes(1)
    assert slopes.slopes.tolist() == [2**-4, 2**-8]
    shaw = relative.Shaw(relative.ShawConfig(5), Stack(16, 2, 3, False, head_dim=6))
    assert torch.equal(shaw.schemes(2)[0].table, shaw.table[2]) and shaw.table.shape == (
        3,
        1,
        11,
        6,
    )
    xl = relative.TransformerXL(relative.TransformerXLConfig(4), encoder)
    (terms,) = xl.schemes(1)
    assert terms.u is xl.u and terms.v is xl.v and torch.equal(terms.weight, xl.weight[1])


@pytest.mark.parametrize("given", [(2, 128), (7, 128), (8, 4)])
def test_t5_buckets_without_a_formula_are_refused_before_any_work(given):
    with pytest.raises(ValueError, match="buckets"):
        relative.T5BiasConfig(*given)
    relative.T5BiasConfig(8, 5)


def test_settings_of_encodings_have_the_limits_that_they_need():
    """The smallest that make sense, and those just beyond."""
    for config, fits, refused in (
        (relative.ShawConfig, (1,), (0,)),
        (relative.DebertaConfig, (1,), (0,)),
        (relative.TransformerXLConfig, (2, 64), (0, 1, 3)),
        (relative.RopeConfig, (1e-3,), (0.0, -1.0)),
    ):
        for value in fits:
            config(value)
        for value in refused:
            with pytest.raises(ValueError, match=str(value)):
                config(value)


def test_tables_that_follow_from_settings_are_in_no_checkpoint():
    stack = Stack(16, 2, 3, False)
    for made in (relative.Alibi(NoConfig(), stack), Sinusoidal(NoConfig(), stack)):
        assert not made.state_dict() and [*made.buffers()]


def test_heads_need_to_divide_the_model_size_only_where_their_own_is_not_given():
    layer = MultiHeadAttention(10, 4, 0.0, lambda q, k, v, **where: q, kv_heads=2, head_dim=3)
    assert layer(torch.randn(2, 5, 10)).shape == (2, 5, 10)
    assert layer.q.out_features == 12 and layer.k.out_features == 6 == layer.v.out_features
    with pytest.raises(ValueError, match="4 heads do not divide a model size of 10"):
        MultiHeadAttention(10, 4, 0.0, None)
    with pytest.raises(ValueError, match="3 heads of keys and values do not divide 4 heads"):
        MultiHeadAttention(8, 4, 0.0, None, kv_heads=3)


def test_encodings_start_as_large_as_is_stated():
    """Of variance 1/C, or 1/D where vectors are a head's and 1/P where sinusoids are mapped; u and v are 0."""
    torch.manual_seed(0)
    stack = Stack(64, 4, 3, False)
    learned = Learned(LearnedConfig(300), stack)
    t5 = relative.T5Bias(relative.T5BiasConfig(512, 1024), stack)
    shaw = relative.Shaw(relative.ShawConfig(60), stack)
    xl = relative.TransformerXL(relative.TransformerXLConfig(32), stack)
    deberta = relative.Deberta(relative.DebertaConfig(), stack)
    for weight, size in (
        (learned.weight, 64),
        (t5.weight, 64),
        (shaw.table, 16),
        (xl.weight, 32),
        (deberta.table, 64),
    ):
        assert weight.std().item() == pytest.approx(size**-0.5, rel=0.07)
    assert not xl.u.any() and not xl.v.any()
    for linear in (*deberta.q, *deberta.k):
        assert is_xavier(linear) and not linear.bias.any()


def is_xavier(linear, gain=1.0):
    """Whether weights are uniform within gain · √(6 / (inputs + outputs)) (Glorot and Bengio 2010, equation 16)."""
    bound = gain * math.sqrt(6 / sum(linear.weight.shape))
    within = 0.97 * bound < linear.weight.abs().max().item() <= bound
    return within and linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.07)


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


def test_dropout_of_all_and_of_hardly_any():
    """What no multiple of 2⁻¹⁶ between 0 and 1 is near to is torch's own."""
    assert not dropout(torch.ones(101), 1.0, True).any()
    torch.manual_seed(3)
    few = dropout(torch.ones(4_000_000), 5e-6, True)
    assert 5 <= int((few == 0).sum()) <= 45  # 20 are expected


def test_dropout_follows_the_seed_and_is_off_in_evaluation():
    x = torch.randn(37)
    torch.manual_seed(5)
    first = dropout(x, 0.4, True)
    torch.manual_seed(5)
    assert torch.equal(first, dropout(x, 0.4, True))
    assert dropout(x, 0.4, False) is x
