"""The split-key decoding kernel in the interpreter against the float64 reference."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mtplug_kernels import attention, positions, reference

pytest.importorskip("triton")
from mtplug_kernels import decoding, operators

from tests.kernels.test_kernels import DEVICE, SCHEMES, in_float64, make_schemes, tensors_of

ALL = [*SCHEMES, "rotary half", "rotary and tables"]


def schemes_without_gradients(name, generator, heads, size, limit):
    def made(name):
        if name == "rotary half":
            return [positions.Rotary(dim=size // 4 * 2)]
        return make_schemes(name, generator, heads, size, limit)

    schemes = made("rotary") + made("bias") + made("query") if "and" in name else made(name)
    for tensor in tensors_of(schemes):
        tensor.requires_grad_(False)
    return schemes


@pytest.fixture
def calls(monkeypatch):
    """Which operator ran."""
    seen = []

    def watch(module, name):
        original = getattr(module, name)

        def watched(*args):
            seen.append(name)
            return original(*args)

        monkeypatch.setattr(module, name, watched)

    watch(decoding, "decode")
    watch(operators, "attend")
    return seen


def compare(q, k, v, schemes, tolerance=2e-5, **options):
    """Largest error of output and logsumexp relative to the largest entry."""
    out, lse = attention(q, k, v, schemes, backend="triton", return_lse=True, **options)
    exact_schemes, exact = in_float64(schemes, [q, k, v, *tensors_of(schemes)])
    want, want_lse = reference.attention(*exact[:3], exact_schemes, return_lse=True, **options)
    empty = want_lse == -math.inf
    assert torch.equal(lse == -math.inf, empty) and (out[empty] == 0).all()
    for got, true in ((lse[~empty], want_lse[~empty]), (out, want.detach())):
        assert got.isfinite().all()
        if true.numel():
            error = (got.double() - true).abs().max() / true.abs().max().clamp(min=0.05)
            assert error < tolerance, f"{error:.1e}"
    return out


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("scheme", ALL)
def test_awkward_shapes(scheme, calls, data):
    draw = data.draw
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    heads, groups = draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1), (8, 1)]))
    size, value = draw(st.sampled_from([8, 16, 20])), draw(st.sampled_from([8, 24]))
    # The interpreter's tiles have 16 rows, of the queries of all heads that share one of keys.
    most, sentences = (16, 3) if DEVICE == "cuda" else (9, 2)
    queries, keys = draw(st.sampled_from([1, 1, 1, 2, 5, most])), draw(st.integers(1, 200))
    batch = draw(st.integers(1, sentences))

    def tensor(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE)

    q = tensor(batch, heads, queries, size)
    k, v = tensor(batch, groups, keys, size), tensor(batch, groups, keys, value)
    offsets = st.integers(-20, keys + 20)
    per_sequence = draw(st.lists(offsets, min_size=batch, max_size=batch))
    lengths = draw(st.lists(st.integers(0, keys), min_size=batch, max_size=batch))
    options = {
        "causal": draw(st.booleans()),
        "query_offset": draw(st.sampled_from([torch.tensor(per_sequence), keys - queries])),
        "key_lengths": torch.tensor(lengths, device=DEVICE) if draw(st.booleans()) else None,
        "scale": draw(st.sampled_from([None, 0.7])),
    }
    schemes = schemes_without_gradients(scheme, generator, heads, size, draw(st.integers(1, 40)))
    compare(q, k, v, schemes, **options)
    assert calls and set(calls) == {"decode"}


@pytest.mark.parametrize("scheme", ["none", "all"])
def test_a_row_that_sees_nothing_of_a_tile_and_scores_far_apart(scheme):
    """The first query's last key ends a tile, and the others have two more; weights differ by more than float32 can hold."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 16, generator=g).to(DEVICE) for n in (3, 66, 66))
    schemes = schemes_without_gradients(scheme, g, 2, 16, 5)
    compare(100 * q, k, v, schemes, causal=True, query_offset=63)


@pytest.mark.parametrize("dtype,error", [(torch.bfloat16, 0.04), (torch.float16, 0.005)])
@pytest.mark.parametrize("scheme", ALL)
def test_half_precision(scheme, dtype, error, calls):
    """Against float64 of the same inputs."""
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 2, n, 16, generator=g).to(DEVICE, dtype) for n in (2, 70, 70))
    schemes = schemes_without_gradients(scheme, g, 2, 16, 6)
    compare(q, k, v, schemes, error, causal=True, query_offset=68)
    assert calls == ["decode"]


@pytest.mark.parametrize("limits", [(3, 7), (7, 3)])
def test_tables_of_any_layout_clip_each_at_its_own_distance(limits):
    """One for each head or for all; neither of them nor q, k, v have their features side by side."""
    g = torch.Generator().manual_seed(0)

    def apart(*shape):
        return torch.randn(*shape[:-2], shape[-1], shape[-2], generator=g).to(DEVICE).mT

    q, k, v = (apart(1, 2, n, 8) for n in (2, 40, 40))
    of_query, of_key = (2 * limit + 1 for limit in limits)
    schemes = [
        positions.ClippedBias(apart(2, 11)),
        positions.Linear(apart(1, 2, 2)[0, 0]),
        positions.QueryTable(apart(2, of_query, 8)),
        positions.KeyTable(apart(1, of_key, 8)),
    ]
    for causal in (False, True):
        compare(q, k, v, schemes, causal=causal, query_offset=30)


@pytest.mark.parametrize(("causal", "limit"), [(False, 32), (True, 64)])
def test_tables_of_one_distance_more_than_a_block(causal, limit):
    """Products with tables are made 64 at a time, causally of the half that can be seen: the last distance, which all
    farther ones share, is alone in its block."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 8, generator=g).to(DEVICE) for n in (1, 70, 70))
    schemes = schemes_without_gradients("deberta", g, 2, 8, limit)
    compare(q, k, v, schemes, causal=causal, query_offset=69)


def test_padding_may_hold_nan():
    """As what a cache holds behind its keys may be."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 16, generator=g).to(DEVICE) for n in (1, 40, 40))
    schemes = schemes_without_gradients("deberta", g, 2, 16, 4)
    length = torch.tensor([21], device=DEVICE)
    want = reference.attention(q, k[:, :, :21], v[:, :, :21], schemes, query_offset=22)
    k[:, :, 21:], v[:, :, 21:] = math.nan, math.inf
    for options in ({}, {"causal": True}):
        given = {**options, "key_lengths": length, "query_offset": 22}
        got = attention(q, k, v, schemes, backend="triton", **given)
        assert (got - want).abs().max() < 1e-5


def test_a_cache_in_more_parts_than_are_added_at_a_time(monkeypatch):
    """Parts are added by sixteens; these are 19."""
    monkeypatch.setattr(decoding, "_SHORTEST_PART", 1)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, n, 8, generator=g).to(DEVICE) for n in (1, 300, 300))
    compare(q, k, v, [])


def test_key_lengths_and_offsets_of_any_layout():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 8, generator=g).to(DEVICE) for n in (2, 40, 40))
    strided = torch.tensor([[5, 33], [20, 1]], device=DEVICE)[:, 0]
    as_read = torch.tensor([[5, 33], [20, 1]], device=DEVICE, dtype=torch.int32)[:, 0]
    one = torch.tensor([17], device=DEVICE)
    for lengths in (strided, one.expand(2), strided.short(), as_read):
        got = attention(q, k, v, key_lengths=lengths, backend="triton")
        assert (got - reference.attention(q, k, v, key_lengths=lengths)).abs().max() < 1e-5
    for offset in (strided, as_read, one, one[0], one.int()):
        got = attention(q, k, v, causal=True, query_offset=offset, backend="triton")
        want = reference.attention(q, k, v, causal=True, query_offset=offset)
        assert (got - want).abs().max() < 1e-5


@pytest.mark.parametrize("scheme", ["none", "all"])
def test_compiled_whole_it_gives_the_same(scheme):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 16, generator=g).to(DEVICE) for n in (2, 40, 40))
    schemes = schemes_without_gradients(scheme, g, 2, 16, 4)

    def step(q, k, v):
        return attention(q, k, v, schemes, causal=True, query_offset=30, backend="triton")

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), step(q, k, v))
