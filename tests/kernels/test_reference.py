"""The reference against the papers' definitions, computed by hand in scalar loops."""

import math

import pytest
import torch
from mtplug_kernels import positions, reference
from mtplug_kernels.philox import keep_mask, philox

F64 = {"dtype": torch.float64}


def by_hand(q, k, v, scale, term, causal=False):
    """Softmax attention of one head in Python floats; ``term(i, j)`` replaces scale * q.k."""
    out = torch.zeros(len(q), v.shape[1], **F64)
    for i in range(len(q)):
        seen = [j for j in range(len(k)) if not causal or j <= i]
        weight = [math.exp(term(i, j)) for j in seen]
        for w, j in zip(weight, seen, strict=True):
            out[i] += w / sum(weight) * v[j]
    return out


def clip(x, d):
    return max(-d, min(d, x)) + d


@pytest.fixture
def one_head():
    torch.manual_seed(0)
    return torch.randn(5, 4, **F64), torch.randn(5, 4, **F64), torch.randn(5, 3, **F64)


def run(qkv, position, **options):
    return reference.attention(*(x[None, None] for x in qkv), position, **options)[0, 0]


def test_shaw_adds_a_key_vector_by_clipped_distance(one_head):
    q, k, v = one_head
    a = torch.randn(5, 4, **F64)  # Shaw et al. 2018, equation 4, K = 2
    want = by_hand(q, k, v, 0.5, lambda i, j: float(q[i] @ (k[j] + a[clip(i - j, 2)])) / 2)
    assert torch.allclose(run(one_head, positions.QueryTable(a[None])), want)


def test_deberta_adds_both_cross_terms(one_head):
    q, k, v = one_head
    to_position, to_content = torch.randn(2, 5, 4, **F64)
    scale = 1 / math.sqrt(3 * 4)  # He et al. 2021, equation 4

    def term(i, j):
        c = clip(i - j, 2)
        return float(q[i] @ k[j] + q[i] @ to_position[c] + k[j] @ to_content[c]) * scale

    schemes = (positions.QueryTable(to_position[None]), positions.KeyTable(to_content[None]))
    assert torch.allclose(run(one_head, schemes, scale=scale), by_hand(q, k, v, scale, term))


def test_transformer_xl_four_terms(one_head):
    q, k, v = one_head
    u, w, weight = torch.randn(4, **F64), torch.randn(4, **F64), torch.randn(4, 6, **F64)

    def term(i, j):  # Dai et al. 2019, section 3.3: (a) + (b) + (c) + (d)
        waves = [10000 ** (-2 * f / 6) * (i - j) for f in range(3)]
        r = weight @ torch.tensor([*map(math.sin, waves), *map(math.cos, waves)], **F64)
        return float(q[i] @ k[j] + q[i] @ r + u @ k[j] + w @ r) / 2

    xl = positions.TransformerXL(u[None], w[None], weight[None])
    assert torch.allclose(run(one_head, xl), by_hand(q, k, v, 0.5, term))


def test_augmented_transformer_xl_is_the_same_score():
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 7, 4, **F64), torch.randn(2, 2, 7, 4, **F64)
    xl = positions.TransformerXL(*torch.randn(2, 2, 4, **F64), torch.randn(2, 4, 6, **F64))
    i, j = torch.arange(7)[None] + 30, torch.arange(7)[None]
    long_q, long_k = positions.augment_transformer_xl(q, k, xl, i, j)
    schemes = {positions.TransformerXL: xl}
    want = reference._scores(q, k, (i[:, :, None] - j[:, None]).expand(2, 7, 7), schemes, 1.0)
    assert torch.allclose(long_q @ long_k.mT, want, atol=1e-12)


def test_alibi_and_its_published_slopes(one_head):
    q, k, v = one_head
    slopes = positions.alibi_slopes(8)
    assert slopes.tolist() == [2.0**-n for n in range(1, 9)]
    assert positions.alibi_slopes(12)[8:].tolist() == pytest.approx(
        [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    )
    want = by_hand(q, k, v, 0.5, lambda i, j: float(q[i] @ k[j]) / 2 - 0.25 * abs(i - j), True)
    got = run(one_head, positions.Linear(slopes[1:2].double()), causal=True)
    assert torch.allclose(got, want)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_is_complex_multiplication(one_head, interleaved):
    q, k, v = one_head

    def turn(x, position):  # Su et al. 2021, equation 13 in complex numbers
        a, b = (x[0::2], x[1::2]) if interleaved else (x[:2], x[2:])
        wave = torch.tensor([1.0, 100.0**-0.5], **F64) * position
        return torch.complex(a, b) * torch.polar(torch.ones(2, **F64), wave)

    def term(i, j):
        return float((turn(q[i], i) * turn(k[j], j).conj()).real.sum()) / 2

    got = run(one_head, positions.Rotary(base=100.0, interleaved=interleaved))
    assert torch.allclose(got, by_hand(q, k, v, 0.5, term))


def published_t5_bucket(relative, bidirectional, buckets, limit):
    """Raffel et al. 2020's function for relative = memory position - query position."""
    result, n = 0, -relative
    if bidirectional:
        buckets //= 2
        result, n = (buckets, -n) if n < 0 else (0, n)
    n = max(n, 0)
    exact = buckets // 2
    if n < exact:
        return result + n
    large = math.log(n / exact) / math.log(limit / exact) * (buckets - exact)
    # 1e-6: where float64 lands just below a whole number, float32 lands on it.
    return result + min(exact + int(large + 1e-6), buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "limit"), [(32, 128), (32, 256), (8, 20)])
def test_t5_buckets_and_table(bidirectional, buckets, limit):
    distance = torch.arange(-1100, 1101)
    want = [published_t5_bucket(-d, bidirectional, buckets, limit) for d in distance.tolist()]
    got = positions.t5_bucket(
        distance, num_buckets=buckets, max_distance=limit, bidirectional=bidirectional
    )
    assert got.tolist() == want
    weight = torch.randn(buckets, 3, requires_grad=True)
    table = positions.t5_table(weight, bidirectional, limit)
    half = table.shape[1] // 2
    assert torch.equal(table[:, distance.clamp(-half, half) + half], weight[want].T)
    table.sum().backward()
    count = torch.bincount(torch.tensor(want)[1100 - half : 1101 + half], minlength=buckets)
    assert torch.equal(weight.grad[:, 0], count.float())


def test_t5_table_is_as_short_as_the_buckets_allow():
    assert positions.t5_table(torch.zeros(32, 1)).shape == (1, 2 * 91 + 1)
    assert positions.t5_table(torch.zeros(32, 1), bidirectional=False).shape == (1, 2 * 113 + 1)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5_table_reaches_the_last_bucket_and_hardly_beyond(bidirectional):
    for buckets in range(4, 64, 3):
        for most in (17, 40, 128, 1000):
            if buckets // (4 if bidirectional else 2) >= most:
                continue
            options = {"num_buckets": buckets, "max_distance": most, "bidirectional": bidirectional}
            limit = positions.t5_table(torch.zeros(buckets, 1), bidirectional, most).shape[1] // 2
            bucket = positions.t5_bucket(torch.arange(most + 1), **options)
            needed = int((bucket != bucket[-1]).sum())
            assert needed <= limit <= needed + 1, options


def test_what_t5_table_keeps_from_inference_serves_training():
    weight = torch.randn(20, 2, requires_grad=True)
    with torch.inference_mode():
        seen = positions.t5_table(weight)
    table = positions.t5_table(weight)
    assert torch.equal(table, seen)
    (gradient,) = torch.autograd.grad(table.sum(), weight)
    assert gradient.sum() == table.numel()


class Biased(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(24, 2))  # a number that no other test has

    def forward(self, q):
        bias = positions.ClippedBias(positions.t5_table(self.weight))
        return reference.attention(q, q, q, position=bias)


def test_a_model_with_t5_s_table_can_be_exported():
    model, batch = Biased(), torch.export.Dim("batch")
    shown = torch.export.export(model, (torch.randn(2, 2, 5, 8),), dynamic_shapes=({0: batch},))
    q = torch.randn(3, 2, 5, 8)
    torch.testing.assert_close(shown.module()(q), model(q))


def test_philox_known_answers():
    """Random123's kat_vectors for philox4x32-10: first words."""
    zero, ones = torch.tensor(0), torch.tensor(0xFFFFFFFF)
    assert int(philox(0, zero, zero, zero, zero)) == 0x6627E8D5
    assert int(philox(2**64 - 1, ones, ones, ones, ones)) == 0x408F276D
    pi = [torch.tensor(x) for x in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    assert int(philox(0x299F31D0A4093822, *pi)) == 0xD16CFE09


def test_dropout_leaves_out_its_share_and_each_score_by_its_own_number():
    """Of sequence, head, query and key; the kernels and the reference could agree on leaving out nothing."""
    heads, i, j = 3, torch.arange(40), torch.arange(50)
    kept = keep_mask(7, 0.3, 2, heads, i, j, first=1)
    count = kept.numel()
    assert kept.float().mean().item() == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / count))
    for n, h, row, column in ((0, 0, 0, 0), (1, 2, 3, 4), (0, 1, 39, 49), (1, 0, 17, 5)):
        of_head = torch.tensor((1 + n) * heads + h)
        word = philox(7, torch.tensor(column), torch.tensor(row), of_head, torch.tensor(0))
        assert kept[n, h, row, column] == (int(word) / 2**32 >= 0.3)
    assert len({tuple(x) for x in kept.flatten(0, 2).tolist()}) == 2 * heads * 40
    assert not keep_mask(7, 1 - 2**-40, 1, 1, i, j).any() and keep_mask(7, 0.0, 1, 1, i, j).all()


def test_empty_rows_are_zero_with_zero_gradients():
    q, k, v = (torch.randn(2, 1, 4, 3, **F64, requires_grad=True) for _ in range(3))
    lengths = torch.tensor([0, 4])
    out, lse = reference.attention(
        q, k, v, causal=True, key_lengths=lengths, query_offset=-2, return_lse=True
    )
    assert (out[0] == 0).all() and (out[1, :, :2] == 0).all() and (out[1, :, 2:] != 0).all()
    assert lse[0].eq(-math.inf).all() and lse[1, :, 2:].isfinite().all()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert grad.isfinite().all() and (grad[0] == 0).all()


def test_packed_sequences_equal_the_padded_batch_with_its_dropout():
    torch.manual_seed(0)
    lengths = torch.tensor([3, 5])
    q, k, v = (torch.randn(2, 4, 5, 4, **F64) for _ in range(3))
    k, v = k[:, :2], v[:, :2]
    options = {
        "position": positions.Linear(torch.rand(4, **F64)),
        "dropout_p": 0.3,
        "dropout_seed": 7,
    }
    padded = reference.attention(q, k, v, key_lengths=lengths, **options)
    pack = [torch.cat([x[n, :, : lengths[n]] for n in (0, 1)], 1)[None] for x in (q, k, v)]
    packed = reference.attention(*pack, cu_seqlens=torch.tensor([0, 3, 8]), **options)
    assert torch.allclose(packed[0, :, :3], padded[0, :, :3])
    assert torch.allclose(packed[0, :, 3:], padded[1])
