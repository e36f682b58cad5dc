"""The Triton kernels in the interpreter against the float64 reference: outputs, all gradients."""

import copy
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mtplug_kernels import attention, positions, reference
from mtplug_kernels.api import MOST, why_not_triton
from mtplug_kernels.philox import keep_mask

pytest.importorskip("triton")
lowering = pytest.importorskip("mtplug_kernels.lowering")
operators = pytest.importorskip("mtplug_kernels.operators")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCHEMES = ["none", "bias", "linear", "query", "key", "xl", "rotary", "deberta", "all"]
# Of queries and keys. The interpreter's tiles have 16 and 32 rows: several either way, and ragged ends.
LONGEST = (70, 90) if DEVICE == "cuda" else (50, 70)


def leaf(generator, *shape, dtype=torch.float32):
    x = torch.randn(*shape, generator=generator).to(DEVICE, dtype)
    return x.requires_grad_()


def make_schemes(name, generator, heads, size, limit, dtype=torch.float32):
    def table(first, *rest, reach=limit):
        return leaf(generator, first, 2 * reach + 1, *rest, dtype=dtype)

    made = {
        "none": lambda: [],
        "bias": lambda: [positions.ClippedBias(table(heads))],
        "linear": lambda: [positions.Linear(leaf(generator, heads, dtype=dtype))],
        "query": lambda: [positions.QueryTable(table(1, size))],
        "key": lambda: [positions.KeyTable(table(heads, size))],
        "xl": lambda: [
            positions.TransformerXL(
                *(leaf(generator, heads, size, dtype=dtype) for _ in "uv"),
                leaf(generator, heads, size, 6, dtype=dtype),
            )
        ],
        "rotary": lambda: [positions.Rotary(dim=8, interleaved=True)],
    }
    made["deberta"] = lambda: made["query"]() + made["key"]()
    made["all"] = lambda: [
        *made["linear"](), *made["xl"](), *made["rotary"](),
        positions.ClippedBias(table(heads, reach=limit + 3)), *made["deberta"](),
    ]  # fmt: skip
    return made[name]()


def tensors_of(schemes):
    return [t for s in schemes for t in vars(s).values() if isinstance(t, torch.Tensor)]


def in_float64(schemes, inputs):
    """Copies of schemes and inputs in float64, leaves again."""
    copies = {id(t): t.detach().double().requires_grad_() for t in inputs}
    made = [type(s)(**{n: copies.get(id(x), x) for n, x in vars(s).items()}) for s in schemes]
    return made, list(copies.values())


def compare(q, k, v, schemes, tolerance=2e-5, **options):
    """Largest error relative to the largest entry, of the output, logsumexp and every gradient."""
    inputs = [q, k, v, *tensors_of(schemes)]
    out, lse = attention(q, k, v, schemes, backend="triton", return_lse=True, **options)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    grads = torch.autograd.grad(out, inputs, upstream)
    exact_schemes, exact = in_float64(schemes, inputs)
    want, want_lse = reference.attention(*exact[:3], exact_schemes, return_lse=True, **options)
    want_grads = torch.autograd.grad(want, exact, upstream.double(), materialize_grads=True)
    empty = want_lse == -math.inf
    assert torch.equal(lse == -math.inf, empty) and (out[empty] == 0).all()
    pairs = [(lse[~empty], want_lse[~empty]), (out, want), *zip(grads, want_grads, strict=True)]
    for n, (got, true) in enumerate(pairs):
        assert got.isfinite().all(), n
        if true.numel():
            # The floor: where a gradient is zero in truth (a single key), rounding remains.
            error = float(
                (got.detach().double() - true.detach()).abs().max()
                / true.detach().abs().max().clamp(min=0.05)
            )
            assert error < tolerance, f"tensor {n}: {error:.1e}"
    return out, grads


@pytest.mark.parametrize("offset", [-MOST, MOST])
@pytest.mark.parametrize("scheme", ["none", "bias", "query", "key"])
def test_no_integer_overflows_at_the_farthest_offset(scheme, offset, request):
    if DEVICE == "cpu":
        request.getfixturevalue("checked_integers")
    generator = torch.Generator().manual_seed(3)
    q, k, v = (leaf(generator, 1, 2, n, 16) for n in (35, 40, 40))
    schemes = make_schemes(scheme, generator, 2, 16, 5)
    compare(q, k, v, schemes, query_offset=offset)
    compare(q, k, v, schemes, query_offset=offset, causal=True)


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("scheme", SCHEMES)
def test_awkward_shapes(scheme, data):
    draw = data.draw
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    heads, groups = draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]))
    size, value = draw(st.sampled_from([8, 16, 20])), draw(st.sampled_from([8, 24]))
    queries, keys = (draw(st.integers(1, longest)) for longest in LONGEST)
    batch = draw(st.integers(1, 2))
    q = leaf(generator, batch, heads, queries, size)
    k, v = leaf(generator, batch, groups, keys, size), leaf(generator, batch, groups, keys, value)
    lengths = draw(st.lists(st.integers(0, keys), min_size=batch, max_size=batch))
    options = {
        "causal": draw(st.booleans()),
        "query_offset": draw(st.integers(-40, 60)),
        "key_lengths": torch.tensor(lengths, device=DEVICE) if draw(st.booleans()) else None,
        "scale": draw(st.sampled_from([None, 0.7])),
    }
    if draw(st.booleans()):
        options |= {"dropout_p": 0.3, "dropout_seed": draw(st.integers(0, 2**62))}
    schemes = make_schemes(scheme, generator, heads, size, draw(st.integers(1, 25)))
    compare(q, k, v, schemes, **options)


@pytest.mark.parametrize("causal", [False, True])
def test_a_table_of_more_distances_than_three_tiles_have(causal):
    """Its gradient is summed by one program for each tile of distances, of 32 here, in both directions."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (leaf(generator, 1, 1, n, 8) for n in (50, 70, 70))
    schemes = make_schemes("bias", generator, 1, 8, 45)
    compare(q, k, v, schemes, causal=causal, query_offset=20 if causal else 10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_table_gradient_whose_rows_are_summed_in_parts(packed, causal, monkeypatch):
    """From 16 tiles of queries on. Here 7 sequences have 21, so that the last part has fewer than the first."""
    monkeypatch.setattr(operators, "_AT_A_TIME", 4)
    generator = torch.Generator().manual_seed(0)
    shape, options = (7, 1, 37), {}
    if packed:
        # The last three have no pair beyond the table.
        starts = ([0, 3, 40, 41, 80, 80, 86, 91], [0, 5, 45, 48, 80, 90, 96, 101])
        shape = (1, 2, 101)
        options = {"cu_seqlens": tuple(torch.tensor(n, device=DEVICE) for n in starts)}
    q, k, v = (leaf(generator, *shape, 8) for _ in "qkv")
    schemes = make_schemes("bias", generator, shape[1], 8, 7)
    compare(q, k, v, schemes, causal=causal, **options)


@pytest.mark.parametrize(
    "dropout_p", [0.0, 0.2]
)  # with, the kernel of dK takes another way for a bias
@pytest.mark.parametrize("scheme", ["bias", "query", "key"])
@pytest.mark.parametrize("limit", [2, 18])
def test_a_tile_is_far_only_where_all_of_it_is(scheme, limit, dropout_p):
    """Tiles of the interpreter have 16 rows and 32 columns: the nearest pair of a tile is 1, 17, … apart."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (leaf(generator, 1, 1, n, 16) for n in (50, 70, 70))
    schemes = make_schemes(scheme, generator, 1, 16, limit)
    compare(q, k, v, schemes, dropout_p=dropout_p, dropout_seed=4)


@pytest.mark.parametrize("causal", [False, True])
def test_what_ends_with_a_tile_or_one_row_from_it(causal):
    """The interpreter's tiles are 32 by 16 and 16 by 32. Queries, keys and offset of each sequence: all keys
    far, and one missing in the last tile; one key in the last tile, which only the last query sees; which is
    just at the clip for it; which only a block's last query sees; within the clip of a block's first and last query; the same from the right.
    """
    g = torch.Generator().manual_seed(0)
    cases = [(1, 31, 60), (32, 33, 1), (32, 33, 3), (16, 33, 17), (32, 49, 16), (3, 31, -60)]
    starts = [torch.tensor([0, *n]).cumsum(0) for n in list(zip(*cases, strict=True))[:2]]
    q, k, v = (leaf(g, 1, 1, int(n[-1]), 8) for n in (starts[0], starts[1], starts[1]))
    schemes = make_schemes("bias", g, 1, 8, 2) + make_schemes("deberta", g, 1, 8, 2)
    offsets = torch.tensor([n for _, _, n in cases], device=DEVICE)
    starts = tuple(x.to(DEVICE) for x in starts)
    compare(q, k, v, schemes, cu_seqlens=starts, query_offset=offsets, causal=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "scheme,dropout_p", [("bias", 0.0), ("bias", 0.2), ("query", 0.0), ("all", 0.2)]
)
def test_packed_sequences(scheme, dropout_p, causal):
    """Different lengths for queries and keys, some of them empty, offsets per sequence."""
    g = torch.Generator().manual_seed(0)
    q, k, v = leaf(g, 1, 2, 50, 16), leaf(g, 1, 1, 61, 16), leaf(g, 1, 1, 61, 16)
    cu_q, cu_k = torch.tensor([0, 0, 7, 40, 50, 50]), torch.tensor([0, 5, 30, 30, 60, 61])
    offset = torch.tensor([4, 3, 0, 15, 0])
    schemes = make_schemes(scheme, g, 2, 16, 6)
    options = {
        "cu_seqlens": (cu_q, cu_k),
        "query_offset": offset,
        "dropout_p": dropout_p,
        "dropout_seed": 9,
    }
    compare(q, k, v, schemes, causal=causal, **options)


@pytest.mark.parametrize("causal", [False, True])
def test_distances_that_do_not_occur_have_no_gradient(causal):
    """One far side follows from the sum of the others. Its rounding was a gradient, of which Adam makes whole steps: T5's
    biases of distances that training never had drifted away."""
    generator = torch.Generator().manual_seed(2)
    cu = torch.tensor([0, 20, 27, 45], dtype=torch.int32, device=DEVICE)
    full, short, starts = (torch.tensor(x, device=DEVICE) for x in ([20, 9], [16, 9], [3, 0]))
    no_queries, few_keys = (
        torch.tensor(x, device=DEVICE) for x in ([0, 20, 20, 45], [0, 20, 25, 45])
    )
    # Of the sequence without queries, or without keys.
    far_away = torch.tensor([0, 60 if causal else -60, 0], device=DEVICE)
    for length, batch, options, farthest in (
        (20, 2, {}, 19),
        (20, 2, {"key_lengths": full}, 19),
        (20, 2, {"key_lengths": short}, 19 if causal else 15),
        (45, 1, {"cu_seqlens": cu}, 19),
        (20, 1, {"query_offset": 4}, 23 if causal else 15),
        (20, 2, {"query_offset": starts}, 22 if causal else 19),
        (
            45,
            1,
            {"cu_seqlens": (no_queries, few_keys), "query_offset": far_away},
            24 if causal else 19,
        ),
        (
            45,
            1,
            {"cu_seqlens": (few_keys, no_queries), "query_offset": far_away},
            19 if causal else 24,
        ),
    ):
        q, k, v = (leaf(generator, batch, 2, length, 16) for _ in "qkv")
        for limit in (farthest, farthest + 1):
            schemes = [
                s for n in ("bias", "query") for s in make_schemes(n, generator, 2, 16, limit)
            ]
            out = attention(q, k, v, schemes, causal=causal, backend="triton", **options)
            for found in torch.autograd.grad((out * v).sum(), tensors_of(schemes)):
                side = found[:, -1 if causal else 0]
                assert side.any() == (limit == farthest), (options, limit)


def test_starts_of_packed_sequences_may_change_in_place():
    """The longest is remembered with the tensor, so that layers which share it wait once."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 100, 16, generator=g).to(DEVICE) for _ in range(3))
    starts = torch.tensor([0, 50, 100], device=DEVICE)
    for first in (50, 50, 4):
        starts[1] = first
        got = attention(q, k, v, cu_seqlens=starts, backend="triton")
        assert (got - reference.attention(q, k, v, cu_seqlens=starts)).abs().max() < 1e-5
    with torch.inference_mode():
        starts = torch.tensor([0, 50, 100], device=DEVICE)
        attention(q, k, v, cu_seqlens=starts, backend="triton")
        starts[1] = 4
        got = attention(q, k, v, cu_seqlens=starts, backend="triton")
    assert (got - reference.attention(q, k, v, cu_seqlens=starts)).abs().max() < 1e-5


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"query_offset": 60, "dropout_p": 0.2, "dropout_seed": 3},
        {"query_offset": -50},
        {"key_lengths": [100, 37]},
        {"cu_seqlens": [0, 70, 110], "query_offset": [0, 25]},
    ],
)
def test_linear_bias_visits_the_keys_that_count(options, causal, monkeypatch):
    """Slopes so steep that most tiles are left out, one that leaves none out, and one below zero."""
    monkeypatch.setattr(lowering, "REACH_FROM", 0)
    options = {n: torch.tensor(x) if isinstance(x, list) else x for n, x in options.items()}
    g = torch.Generator().manual_seed(0)
    batch, keys = (1, 110) if "cu_seqlens" in options else (1 + ("key_lengths" in options), 100)
    q, k, v = leaf(g, batch, 4, 110, 8), leaf(g, batch, 2, keys, 8), leaf(g, batch, 2, keys, 16)
    with torch.no_grad():
        q *= 0.4
    slopes = torch.tensor([5.0, 1.0, 0.02, -0.1], device=DEVICE, requires_grad=True)
    reach = lowering.reach_of(q, k, slopes, 8**-0.5)
    repeated = k.repeat_interleave(2, 1)  # each head of queries has the keys of its own group
    assert torch.equal(reach, lowering.reach_of(q, repeated, slopes, 8**-0.5))
    assert (reach[:, 0] < 16).all() and (reach[:, 2] > 500).all() and (reach[:, 3] == 2**30).all()
    compare(q, k, v, [positions.Linear(slopes)], causal=causal, **options)


@pytest.mark.parametrize("scheme", ["bias", "query", "key", "xl"])
def test_no_keys_are_left_out_where_something_may_outweigh_the_slope(scheme, monkeypatch):
    """The slope takes 3 a position, and the other scheme adds hundreds here and there."""
    monkeypatch.setattr(lowering, "REACH_FROM", 0)
    g = torch.Generator().manual_seed(0)
    q, k, v = (leaf(g, 1, 1, n, 8) for n in (20, 100, 100))
    schemes = make_schemes(scheme, g, 1, 8, 40)
    with torch.no_grad():
        for tensor in tensors_of(schemes):
            tensor *= {"bias": 300, "xl": 10}.get(scheme, 100)
    slopes = torch.tensor([3.0], device=DEVICE, requires_grad=True)
    compare(q, k, v, [*schemes, positions.Linear(slopes)], 3e-4)


def test_far_keys_of_a_steep_slope_are_not_read(monkeypatch):
    monkeypatch.setattr(lowering, "REACH_FROM", 0)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 200, 16, generator=g).to(DEVICE) for _ in range(3))
    v[:, :, 150:] = math.nan
    steep = positions.Linear(torch.tensor([3.0], device=DEVICE))
    near = attention(q, k, v, steep, backend="triton")[0, 0, :80]
    want = reference.attention(q[:, :, :80], k[:, :, :150], v[:, :, :150], steep)[0, 0]
    assert (near - want).abs().max() < 1e-5


@pytest.mark.parametrize("slope", [0.004, 0.3, 4.0])
@pytest.mark.parametrize("worst", [False, True])
@pytest.mark.parametrize("scale", [0.25, 2.0])
def test_weights_beyond_reach_are_below_float32(slope, worst, scale):
    """Summed in float64 for queries inside the keys and beyond; worst: all near keys oppose the
    query and all far ones are along it. A reach half as long would not do there."""
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3000, 16, generator=g)
    if worst:
        q[:] = q[0]
        k[:] = q[0]
    slopes = torch.tensor([slope])
    reach = int(lowering.reach_of(q[None, None], k[None, None], slopes, scale))
    if worst:
        k[max(2999 - reach // 2, 0) :] *= -1
    keys = torch.arange(3000)
    at = torch.tensor([2999, 3400])
    distance = (at[:, None] - keys).abs()
    weights = torch.softmax(q[-2:].double() @ k.T.double() * scale - slope * distance, 1)
    beyond = distance - distance.min(1, keepdim=True).values
    assert (weights * (beyond > reach)).sum(1).max() <= 2**-32
    if worst and slope > 0.1:
        assert (weights * (beyond > reach / 2)).sum(1).min() > 2**-32


@pytest.mark.parametrize("scheme", ["bias", "linear", "query", "key", "xl"])
def test_positions_alone_may_be_learnt(scheme):
    """Of few queries, too, which decoding's kernel, without gradients, would take."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 16, generator=g).to(DEVICE) for n in (2, 20, 20))
    schemes = make_schemes(scheme, g, 2, 16, 3)
    found = []
    for backend in ("triton", "reference"):
        out = attention(q, k, v, schemes, backend=backend, query_offset=9)
        found.append(torch.autograd.grad(out.sin().sum(), tensors_of(schemes)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_logsumexp_takes_no_part_in_gradients(backend):
    """No kernel has one for it: it would be left out without a word."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (leaf(g, 1, 2, 20, 16) for _ in range(3))
    out, lse = attention(q, k, v, return_lse=True, backend=backend)
    assert out.requires_grad and not lse.requires_grad


def test_transformer_xl_may_have_one_weight_for_all_heads():
    g = torch.Generator().manual_seed(0)
    xl = positions.TransformerXL(leaf(g, 2, 16), leaf(g, 2, 16), leaf(g, 1, 16, 6))
    q, k, v = (leaf(g, 1, 2, n, 16) for n in (20, 20, 20))
    compare(q, k, v, [xl])
    with torch.no_grad():
        got = attention(q[:, :, :2], k, v, xl, backend="triton")  # by decoding's kernel
        want = reference.attention(q[:, :, :2], k, v, xl)
    assert (got - want).abs().max() < 1e-5


def test_strided_inputs_and_per_sequence_offsets():
    g = torch.Generator().manual_seed(0)
    q, k, v = (leaf(g, 2, 40, 2, 16).transpose(1, 2) for _ in range(3))
    compare(q, k, v, make_schemes("bias", g, 2, 16, 9), query_offset=torch.tensor([0, 17]))
    q, k, v = (leaf(g, 2, 2, 16, 40).transpose(2, 3) for _ in range(3))
    compare(q, k, v, [*make_schemes("bias", g, 2, 16, 9), positions.Rotary()], causal=True)


def test_heads_whose_rows_are_no_multiples_of_16_bytes():
    """The copy engine's rows must begin at such: descriptors refuse others in the interpreter, too."""
    g = torch.Generator().manual_seed(0)
    q, k = leaf(g, 2, 2, 35, 10), leaf(g, 2, 1, 40, 10)
    v = leaf(g, 2, 1, 40, 6)
    lengths = torch.tensor([30, 21], device=DEVICE)
    compare(q, k, v, make_schemes("all", g, 2, 10, 3), key_lengths=lengths)
    compare(q, k, v, [])


def test_two_runs_are_bitwise_equal():
    g = torch.Generator().manual_seed(0)
    # As many programs as a GPU may run in any order; the interpreter has one order.
    batch, heads = (2, 4) if DEVICE == "cuda" else (1, 2)
    q = leaf(g, batch, heads, 50, 16)
    k, v = (leaf(g, batch, heads // 2, 50, 16) for _ in range(2))
    schemes = make_schemes("all", g, heads, 16, 5)
    options = {"dropout_p": 0.1, "dropout_seed": 3}
    first, again = (compare(q, k, v, schemes, **options) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_table_gradient_keeps_its_accuracy_with_a_common_component(causal, dropout_p):
    """delta from a bfloat16 output is wrong by order one here; the row sum of dS repairs it."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (leaf(g, 1, 1, 96, 16, dtype=torch.bfloat16) for _ in range(3))
    v = (v.detach() + 4).requires_grad_()
    table = leaf(g, 1, 2 * 9 + 1)
    options = {"causal": causal, "dropout_p": dropout_p, "dropout_seed": 5}
    upstream = (torch.randn(q.shape, generator=g).to(q) + 4).detach()
    out = attention(q, k, v, positions.ClippedBias(table), backend="triton", **options)
    (grad,) = torch.autograd.grad(out, table, upstream)
    (bias,), exact = in_float64([positions.ClippedBias(table)], [q, k, v, table])
    want = reference.attention(*exact[:3], bias, **options)
    (true,) = torch.autograd.grad(want, exact[3], upstream.double())
    assert (out - want).abs().max() < 0.02 * want.abs().max()
    assert (grad - true).abs().max() / true.abs().max() < 1e-5
    # Every row of dS sums to zero, so the table's gradient does.
    assert float(grad.sum().abs()) < 1e-4 * float(grad.abs().sum())


def test_empty_rows_give_zeros_and_zero_gradients():
    g = torch.Generator().manual_seed(0)
    q, k, v = (leaf(g, 2, 2, 40, 16) for _ in range(3))
    lengths = torch.tensor([0, 33], device=DEVICE)
    schemes = make_schemes("all", g, 2, 16, 5)
    out, grads = compare(q, k, v, schemes, causal=True, query_offset=-20, key_lengths=lengths)
    assert (out[0] == 0).all() and (out[1, :, :20] == 0).all() and (out[1, :, 20:] != 0).any()
    assert (grads[1][0] == 0).all() and (grads[1][1, :, 33:] == 0).all()


@pytest.mark.parametrize("gradient", [False, True])  # without, decoding's kernel would run
@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 0), (2, 20, 0)])
def test_nothing_gives_nothing_and_no_keys_give_zeros(shape, gradient):
    batch, *lengths = shape
    g = torch.Generator().manual_seed(0)
    q, k, v = (leaf(g, batch, 2, n, 16) for n in (lengths[0], lengths[1], lengths[1]))
    schemes = make_schemes("all", g, 2, 16, 3)
    for backend in ("triton", "reference"):
        with torch.set_grad_enabled(gradient):
            out, lse = attention(q, k, v, schemes, causal=True, backend=backend, return_lse=True)
        assert out.shape == q.shape and lse.shape == q.shape[:3]
        assert (out == 0).all() and (lse == -math.inf).all()
        if gradient:
            needed = [q, k, v, *tensors_of(schemes)]
            grads = torch.autograd.grad(out.sum(), needed, materialize_grads=True)
            assert all((x == 0).all() for x in grads)


@pytest.mark.parametrize("queries", [2, 20])
def test_lengths_beyond_the_keys_or_below_zero_are_all_of_them_or_none(queries):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 16, generator=g).to(DEVICE) for n in (queries, 21, 21))
    for backend in ("triton", "reference"):
        got, want = (
            attention(q, k, v, key_lengths=torch.tensor(n, device=DEVICE), backend=backend)
            for n in ([40, -3], [21, 0])
        )
        assert torch.equal(got, want) and not got[1].any()


def test_padding_may_hold_nan():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 40, 16, generator=g).to(DEVICE) for _ in range(3))
    options = {"key_lengths": torch.tensor([21], device=DEVICE), "backend": "triton"}
    want = attention(q, k, v, **options)
    k[:, :, 21:], v[:, :, 21:] = math.nan, math.inf
    assert torch.equal(attention(q, k, v, **options), want)


def test_opcheck():
    from mtplug_kernels.operators import attend, attend_backward, turn_pairs

    g = torch.Generator().manual_seed(0)
    q, k, v = leaf(g, 1, 2, 9, 16), leaf(g, 1, 1, 11, 16), leaf(g, 1, 1, 11, 16)
    table, slopes = leaf(g, 2, 7), leaf(g, 2)
    qr, kr = leaf(g, 1, 2, 9, 8), leaf(g, 1, 2, 11, 8)
    spans = torch.tensor([[0, 9, 0, 11, 2]], dtype=torch.int32, device=DEVICE)
    q2, waves = leaf(g, 1, 2, 9, 6), torch.randn(11, 6, generator=g).to(DEVICE)
    reach = torch.tensor([[3, 30]], dtype=torch.int32, device=DEVICE)
    for optional, where in (
        ((None,) * 6, (None, None)),
        ((table, qr, kr, slopes, q2, waves), (spans, reach)),
    ):
        place = (2, 3, False, False, 0.25, 0.0, 0, [], where[0] is not None)
        args = (q, k, v, *optional, *where, *place)
        torch.library.opcheck(attend, args)
    none = (x.detach().bfloat16() for x in (q, k[:, :, :0], v[:, :, :0]))
    torch.library.opcheck(attend, (*none, *args[3:]), test_utils="test_faketensor")
    # P of 6 is no multiple of 16 bytes: the gradient of q2 has longer rows.
    out, lse, left = attend(q, k, v, None, None, None, None, q2, waves, None, None, *place)
    args = (out, q, k, v, out, lse, left, None, None, None, None, q2, waves, None, None, *place)
    torch.library.opcheck(
        attend_backward, [*(x.detach() if torch.is_tensor(x) else x for x in args), False, False]
    )
    for y in (None, k):
        args = (q, y, None, None, 3, 1e4, 8, False, 1.0, -1.0, torch.bfloat16)
        torch.library.opcheck(turn_pairs, args)


@pytest.mark.parametrize(
    ("name", "dynamic"), [("bias", None), ("bias", True), ("deberta", True), ("xl", True)]
)
def test_compiled_whole_it_gives_the_same(name, dynamic):
    """Without a break in the graph, by the operators' shapes alone; sizes that vary are no numbers there."""
    g = torch.Generator().manual_seed(0)
    schemes = [*make_schemes(name, g, 2, 16, 4), *([positions.Rotary()] if name == "bias" else [])]

    def step(q, k, v):
        return attention(q, k, v, schemes, backend="triton")

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for length in (20, 33) if dynamic else (20,):
        q, k, v = (leaf(g, 1, 2, length, 16) for _ in range(3))
        needed = [q, k, v, *tensors_of(schemes)]
        outs = compiled(q, k, v), step(q, k, v)
        grads = [torch.autograd.grad(out.sin().sum(), needed) for out in outs]
        assert torch.equal(*outs)
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_checkpointing_and_autocast():
    from torch.utils.checkpoint import checkpoint

    g = torch.Generator().manual_seed(0)
    q, k, v = (leaf(g, 1, 2, 20, 16) for _ in range(3))
    options = {"dropout_p": 0.5, "backend": "triton"}

    def loss():
        return attention(q, k, v, **options).square().sum()

    torch.manual_seed(4)
    want = torch.autograd.grad(loss(), q)[0]
    torch.manual_seed(4)
    got = torch.autograd.grad(checkpoint(loss, use_reentrant=False), q)[0]
    assert torch.equal(got, want)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert attention(q, k.bfloat16(), v, backend="triton").dtype == torch.bfloat16


def test_what_kernels_multiply_is_of_one_type_and_what_they_add_of_float32(monkeypatch):
    """They don't compile for others on a GPU; the interpreter would compute with any. Learnt positions may stay
    in float32, and where all sequences are alike no kernel is told of each."""
    seen, attend = [], operators.attend_with_gradients
    monkeypatch.setattr(
        operators, "attend_with_gradients", lambda *x: (seen.append(x), attend(*x))[1]
    )
    g = torch.Generator().manual_seed(0)
    half, single = torch.bfloat16, torch.float32
    for of_schemes in (half, single):
        q, k, v = (leaf(g, 1, 2, n, 16, dtype=half) for n in (20, 21, 21))
        schemes = make_schemes("all", g, 2, 16, 3, of_schemes)
        out = attention(q, k, v, schemes, query_offset=2, backend="triton")
        (q2, k2, v2, table, qr, kr, slopes, tail, waves, spans, *_) = seen.pop()
        assert {x.dtype for x in (q2, k2, v2, qr, kr, tail, waves, out)} == {half}
        assert table.dtype == slopes.dtype == single and spans is None
        needed = [q, k, v, *tensors_of(schemes)]
        grads = torch.autograd.grad(out.float().sin().sum(), needed)
        assert [x.dtype for x in grads] == [x.dtype for x in needed]
        exact_schemes, exact = in_float64(schemes, needed)
        want = reference.attention(*exact[:3], exact_schemes, query_offset=2)
        assert (out - want).abs().max() < 0.05


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_no_sequences_leave_all_rows_behind_the_last(backend):
    q, k = torch.randn(1, 2, 20, 16, device=DEVICE), torch.randn(1, 1, 5, 16, device=DEVICE)
    none = torch.tensor([0], device=DEVICE)
    out, lse = attention(q, k, k, cu_seqlens=none, return_lse=True, backend=backend)
    assert out.shape == q.shape and not out.any() and (lse == -math.inf).all()
    if backend == "reference":
        out, lse = reference.attention(q, k, k, cu_seqlens=none, return_lse=True)
        assert out.shape == q.shape and not out.any() and (lse == -math.inf).all()


def test_refusals_say_why(monkeypatch):
    q = torch.randn(1, 2, 4, 16, device=DEVICE)
    with pytest.raises(RuntimeError, match="float64 is not"):
        attention(q.double(), q.double(), q.double(), backend="triton")
    with pytest.raises(ValueError, match="not a multiple of 3"):
        attention(q, q[:, :1].expand(1, 3, 4, 16), q[:, :1].expand(1, 3, 4, 16))
    with pytest.raises(ValueError, match="two Linear"):
        attention(q, q, q, (positions.Linear(torch.ones(2)), positions.Linear(torch.ones(2))))
    with pytest.raises(ValueError, match="backend must be one of"):
        attention(q, q, q, backend="flash")
    for k, v in ((q[:, :0], q[:, :0]), (q, q[..., :0])):
        with pytest.raises(ValueError, match="need heads and features"):
            attention(q, k, v)
    two = q.expand(2, -1, -1, -1)
    for k, v in ((two, two), (q, two), (q[..., :8], q), (q, q[:, :, :3])):
        with pytest.raises(ValueError, match="do not fit together"):
            attention(q, k, v)
    with pytest.raises(ValueError, match="needs a batch of 1 with all sequences in it, not 2"):
        attention(two, two, two, cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(TypeError, match=r"different dtypes: torch\.float32, torch\.bfloat16"):
        attention(q, q.bfloat16(), q)
    # The longest head: of queries with the sinusoids, or of values.
    why = why_not_triton
    long, xl = torch.zeros(1, 2, 4, 256, device=DEVICE), positions.TransformerXL
    assert (
        why(long, long, long, {})
        == ""
        == why(q, q, long, {xl: xl(ONE(2, 16), ONE(2, 16), ONE(2, 16, 240))})
    )
    assert "257 features" in why(q, q, torch.zeros(1, 2, 4, 257, device=DEVICE), {})
    assert "258 features" in why(q, q, q, {xl: xl(ONE(2, 16), ONE(2, 16), ONE(2, 16, 242))})
    monkeypatch.delenv("TRITON_INTERPRET")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="tensors are on cpu"):
            attention(q, q, q, backend="triton")


@pytest.mark.parametrize("queries", [3, 20])  # decoding's operator, and training's
def test_forward_mode_derivatives_are_the_references(queries):
    """An operator without them gives zeros."""
    g = torch.Generator().manual_seed(0)
    q, k, v, along = (torch.randn(1, 2, queries, 16, generator=g).to(DEVICE) for _ in range(4))

    def derivative(backend):
        return torch.func.jvp(lambda k: attention(q, k, v, backend=backend), (k,), (along,))[1]

    with pytest.raises(RuntimeError, match=r"derivatives .* are the reference's alone"):
        derivative("triton")
    with pytest.raises(RuntimeError, match="derivatives"):  # of all three, too
        torch.func.jvp(lambda *x: attention(*x, backend="triton"), (q, k, v), (along,) * 3)
    step = 1e-4
    near = (
        reference.attention(q.double(), k.double() + s * along, v.double()) for s in (step, -step)
    )
    expected = (next(near) - next(near)) / (2 * step)
    assert (derivative("auto") - expected).abs().max() < 1e-5


def test_tensors_of_other_devices_are_named():
    q = torch.randn(1, 2, 4, 16)
    for backend in ("triton", "reference"):
        with pytest.raises(ValueError, match=r"v is on meta, q on cpu"):
            attention(q, q, q.to("meta"), backend=backend)
        with pytest.raises(ValueError, match=r"KeyTable.table is on meta"):
            table = positions.KeyTable(torch.ones(2, 3, 16, device="meta"))
            attention(q, q, q, table, backend=backend)
        with pytest.raises(TypeError, match="q, k, v must be tensors, not ndarray"):
            attention(q.numpy(), q, q, backend=backend)


def test_rows_behind_the_last_sequence_give_zero_and_starts_may_be_copied():
    q = torch.randn(1, 2, 7, 16, device=DEVICE)
    cu = torch.tensor([0, 2, 5], dtype=torch.int32, device=DEVICE)
    found = [
        attention(q, q, q, cu_seqlens=cu, backend="triton"),
        reference.attention(q, q, q, cu_seqlens=cu),
    ]
    for out in found:
        assert out.shape == q.shape and not out[:, :, 5:].any()
    torch.testing.assert_close(*found)
    _, lse = reference.attention(q, q, q, cu_seqlens=cu, return_lse=True)
    assert lse[..., :5].isfinite().all() and (lse[..., 5:] == -math.inf).all()
    with pytest.raises(ValueError, match="must ascend from 0"):
        reference.attention(q, q, q, cu_seqlens=cu + 1)
    other = copy.deepcopy(cu)  # with what was remembered of it
    other[1:] = torch.tensor([4, 7])
    torch.testing.assert_close(
        attention(q, q, q, cu_seqlens=other, backend="triton"),
        reference.attention(q, q, q, cu_seqlens=other),
    )


ONE = torch.ones


@pytest.mark.parametrize(
    "message, options",
    [
        (r"key_lengths must be a tensor of \(1,\) integers, not \[3\]", {"key_lengths": [3]}),
        (r"key_lengths .* not torch.float32 of \(1,\)", {"key_lengths": ONE(1)}),
        ("cu_seqlens must be a tensor", {"cu_seqlens": [0, 4]}),
        ("cu_seqlens must be a tensor", {"cu_seqlens": torch.tensor([0.0, 4.0])}),
        (
            "sequences . 1 starts each, not 2 and 3",
            {"cu_seqlens": (torch.tensor([0, 4]), torch.tensor([0, 2, 4]))},
        ),
        ("sequences . 1 starts each, not 0", {"cu_seqlens": torch.tensor([], dtype=torch.int64)}),
        ("ends at 5, but there are 4 queries", {"cu_seqlens": torch.tensor([0, 3, 5])}),
        (
            "ends at 6, but there are 4 keys",
            {"cu_seqlens": (torch.tensor([0, 4]), torch.tensor([0, 6]))},
        ),
        ("must ascend from 0", {"cu_seqlens": torch.tensor([0, 3, 2])}),
        ("must ascend from 0", {"cu_seqlens": torch.tensor([-1, 3])}),
        ("must ascend from 0", {"cu_seqlens": torch.tensor([2, 3])}),
        (r"query_offset must be .* not 0.5", {"query_offset": 0.5}),
        (r"query_offset must be .* of \(3,\)", {"query_offset": torch.tensor([0, 1, 2])}),
        (r"query_offset must be within ±1,073,741,824", {"query_offset": 2**31 - 1}),
        ("cu_seqlens must be a tensor", {"cu_seqlens": (torch.tensor([0, 4]),)}),
        ("must ascend from 0", {"cu_seqlens": torch.tensor([0, 4, 2], dtype=torch.uint8)}),
        ("scale must be positive and finite", {"scale": math.inf}),
        ("dropout_seed must be an integer of 64 bits", {"dropout_p": 0.1, "dropout_seed": 2**63}),
        (
            r"ClippedBias.table has shape \(2, 4\), it must be \(2, 2D . 1\)",
            {"position": positions.ClippedBias(ONE(2, 4))},
        ),
        (r"must be \(2,\)", {"position": positions.Linear(ONE(3))}),
        (r"must be \(2 or 1, 2D . 1, 16\)", {"position": positions.KeyTable(ONE(1, 5, 8))}),
        (
            r"TransformerXL.u has shape \(16,\), it must be \(2, 16\)",
            {"position": positions.TransformerXL(ONE(16), ONE(2, 16), ONE(2, 16, 4))},
        ),
        ("P even", {"position": positions.TransformerXL(ONE(2, 16), ONE(2, 16), ONE(2, 16, 0))}),
        ("Rotary dim must be even and from 2 to 16", {"position": positions.Rotary(dim=0)}),
        ("Rotary dim must be even", {"position": positions.Rotary(dim=-2)}),
        ("Rotary dim must be even", {"position": positions.Rotary(dim=8.0)}),
        ("Rotary dim must be even", {"position": positions.Rotary(dim=7)}),
        (
            "Rotary dim must be even and from 2 to 16, not 18",
            {"position": positions.Rotary(dim=18)},
        ),
        ("P even", {"position": positions.TransformerXL(ONE(2, 16), ONE(2, 16), ONE(2, 16, 3))}),
        (r"ClippedBias.table has shape \(2, 1\)", {"position": positions.ClippedBias(ONE(2, 1))}),
        (r"key_lengths .* not torch.bool", {"key_lengths": ONE(1, dtype=torch.bool)}),
        (
            "give one of them",
            {"key_lengths": torch.tensor([4]), "cu_seqlens": torch.tensor([0, 4])},
        ),
        (r"query_offset must be within ±1,073,741,824", {"query_offset": -(2**31)}),
        ("scale must be positive and finite", {"scale": 0.0}),
        ("scale must be positive and finite", {"scale": math.nan}),
        ("dropout_seed must be an integer", {"dropout_p": 0.1, "dropout_seed": -(2**63) - 1}),
        ("dropout_seed must be an integer", {"dropout_p": 0.1, "dropout_seed": 1.0}),
        (r"dropout_p must be in \[0, 1\), not 1.0", {"dropout_p": 1.0}),
        (r"dropout_p must be in \[0, 1\), not -0.1", {"dropout_p": -0.1}),
        (r"dropout_p must be in \[0, 1\), not nan", {"dropout_p": math.nan}),
        ("Rotary base must be positive", {"position": positions.Rotary(base=0)}),
    ],
)
def test_wrong_arguments_are_named_with_what_would_be_right(message, options):
    q = torch.randn(1, 2, 4, 16, device=DEVICE)
    for backend in ("triton", "reference"):
        with pytest.raises(ValueError, match=message):
            attention(q, q, q, backend=backend, **options)


def test_what_has_no_gradient_or_no_meaning_is_refused():
    q = torch.randn(1, 2, 4, 16, device=DEVICE)
    with pytest.raises(TypeError, match="scale must be a number; to learn it, multiply q"):
        attention(q, q, q, scale=torch.nn.Parameter(torch.tensor(0.3)))
    with pytest.raises(TypeError, match=r"must be of floating point, not torch\.int64"):
        attention(*[q.long()] * 3)
    with pytest.raises(TypeError, match=r"must come from mtplug_kernels\.positions, not Tensor"):
        attention(q, q, q, position=q)
    with pytest.raises(TypeError, match=r"ClippedBias.table must be a tensor of shape \(2, 2D"):
        attention(q, q, q, position=positions.ClippedBias([0.0]))
    with pytest.raises(ValueError, match=r"reference\.attention has no backend 'triton'"):
        reference.attention(q, q, q, backend="triton")
    with pytest.raises(ValueError, match="at least 1 head, not 0"):
        positions.alibi_slopes(0)


@pytest.mark.parametrize("buckets, most", [(2, 128), (32, 8), (32, 4)])
def test_t5_tables_that_have_no_formula_are_refused(buckets, most):
    with pytest.raises(ValueError, match="T5's formula needs at least 4 buckets"):
        positions.t5_table(torch.zeros(buckets, 2), max_distance=most)


def test_t5_table_is_not_rounded_by_autocast():
    weight = torch.randn(32, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        table = positions.t5_table(weight)
    assert table.dtype == torch.float32 and torch.equal(table, positions.t5_table(weight))


@pytest.mark.parametrize("what", range(3))
def test_rows_behind_the_last_packed_sequence_may_hold_nan(what):
    """Buffers of a fixed size; the rows give zeros, in both backends."""
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, 40, 16, generator=g).to(DEVICE) for _ in range(3)]
    table = leaf(g, 2, 9)
    starts = torch.tensor([0, 20, 30])

    def run(backend, length):
        given = [x[:, :, :length].clone().requires_grad_() for x in inputs]
        out, lse = attention(
            *given,
            positions.ClippedBias(table),
            cu_seqlens=starts,
            backend=backend,
            return_lse=True,
        )
        return out, lse, torch.autograd.grad(out.sin().sum(), [*given, table])

    want, want_lse, want_grads = run("reference", 30)
    inputs[what][:, :, 30:] = math.nan
    for backend in ("triton", "reference"):
        out, lse, grads = run(backend, 40)
        assert out.shape[2] == 40 and (out[:, :, 30:] == 0).all() and (lse[..., 30:] < -1e30).all()
        assert (out[:, :, :30] - want).abs().max() < 1e-5
        assert (lse[..., :30] - want_lse).abs().max() < 1e-5
        for a, b in zip(grads, want_grads, strict=True):
            assert (a[:, :, 30:] == 0).all() if a.ndim == 4 else True
            assert (a[:, :, :30] if a.ndim == 4 else a).allclose(b, atol=1e-4)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_padding_of_nan_leaves_gradients_finite(backend):
    g = torch.Generator().manual_seed(0)
    q, k, v = leaf(g, 1, 2, 20, 16), leaf(g, 1, 2, 30, 16), leaf(g, 1, 2, 30, 16)
    schemes = make_schemes("deberta", g, 2, 16, 4)
    with torch.no_grad():
        k[:, :, 21:], v[:, :, 21:] = math.nan, math.inf
    length = torch.tensor([21], device=DEVICE)
    out = attention(q, k, v, schemes, key_lengths=length, backend=backend)
    needed = [q, k, v, *tensors_of(schemes)]
    assert all(x.isfinite().all() for x in (out, *torch.autograd.grad(out.sum(), needed)))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [None, 10])
def test_turning_in_one_pass_is_rotation(dim, interleaved):
    """Strided rows of q and k, more heads than a program turns, positions of each sequence or of all,
    features that do not turn; bfloat16 rounds once."""
    g = torch.Generator().manual_seed(0)
    rotary = positions.Rotary(dim=dim, interleaved=interleaved)
    leaves = leaf(g, 2, 170, 9, 20), leaf(g, 2, 19, 1, 20)
    q, k = (x.transpose(1, 2) for x in leaves)
    places = [torch.randint(0, 100_000, (2, n), generator=g).to(DEVICE) for n in (170, 19)]
    start = [(60_000 + torch.arange(170))[None].to(DEVICE), torch.arange(19)[None].to(DEVICE)]
    mixed = [places[0], places[1][:1]]  # keys' of one sequence are those of all
    for where, first, true in (
        (places, 0, places), (mixed, 0, mixed), ([None, None], 60_000, start)
    ):  # fmt: skip
        got = operators.rotate(q, k, *where, first, rotary)
        want = [
            positions.rotate(x.double(), at, rotary) for x, at in zip((q, k), true, strict=True)
        ]
        upstream = [torch.randn(x.shape, generator=g).to(x) for x in got]
        gradients = torch.autograd.grad(got, leaves, upstream)
        exact = torch.autograd.grad(want, leaves, [x.double() for x in upstream])
        for a, b in zip((*got, *gradients), (*want, *exact), strict=True):
            assert (a - b).abs().max() < 2e-6
    half = q.detach().bfloat16()
    exact = positions.rotate(half.double(), places[0], rotary)
    error = (operators.rotate(half, half, places[0], places[0], 0, rotary)[1] - exact).abs()
    assert (error <= 2**-7 * exact.abs() + 1e-6).all()  # one unit: the interpreter truncates


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_on_a_cpu_only_who_asks_for_kernels_gets_them(backend, dtype, monkeypatch):
    monkeypatch.setattr(lowering, "attention", None)
    q, k, v = torch.randn(3, 1, 2, 5, 8, dtype=dtype)
    assert torch.equal(attention(q, k, v, backend=backend), reference.attention(q, k, v))


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_the_first_and_last_seed_drop_what_the_reference_drops(seed):
    q, k, v = torch.randn(3, 1, 2, 5, 8, device=DEVICE)
    options = {"dropout_p": 0.5, "dropout_seed": seed}
    found = attention(q, k, v, backend="triton", **options)
    torch.testing.assert_close(found, reference.attention(q, k, v, **options))


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_dropout_divides_what_it_leaves(backend):
    """Weights of 1/64 each: an output of ones is the number that was kept, over 64 · 0.7."""
    q, k = (torch.zeros(1, 2, n, 16, device=DEVICE) for n in (20, 64))
    options = {"dropout_p": 0.3, "dropout_seed": 5, "backend": backend}
    out = attention(q, k, torch.ones_like(k), **options)
    kept = keep_mask(5, 0.3, 1, 2, torch.arange(20), torch.arange(64)).sum(-1)
    torch.testing.assert_close(out[..., 0].cpu(), kept / (64 * 0.7))
