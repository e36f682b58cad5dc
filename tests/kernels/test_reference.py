"""The reference against the published definitions, written out element by element."""

import math

import pytest
import torch
from mtplug_kernels import positions
from mtplug_kernels.philox import _philox, keep_mask
from mtplug_kernels.reference import attention

B, H, I, J, D = 2, 4, 5, 7, 6  # noqa: E741


def tensors(heads=H, keys=H):
    torch.manual_seed(0)
    q = torch.randn(B, heads, I, D, dtype=torch.float64)
    k, v = torch.randn(2, B, keys, J, D, dtype=torch.float64)
    return q, k, v


def by_hand(q, k, v, score, seen=lambda b, i, j: True):
    """Softmax over `score(b, h, i, j)` and the mean of values, one element at a time."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                js = [j for j in range(k.shape[2]) if seen(b, i, j)]
                if not js:
                    continue
                weights = torch.stack([score(b, h, i, j) for j in js]).softmax(0)
                head = h * k.shape[1] // q.shape[1]
                out[b, h, i] = sum(w * v[b, head, j] for w, j in zip(weights, js, strict=True))
    return out


def clip(x, reach):
    return max(-reach, min(reach, x))


def test_shaw_adds_relation_vectors_to_keys():
    """Shaw et al. 2018, equation 4: e_ij = x_i W_Q (x_j W_K + a_ij)ᵀ / sqrt(d)."""
    q, k, v = tensors()
    table = torch.randn(1, 2 * 2 + 1, D, dtype=torch.float64)

    def score(b, h, i, j):
        relation = table[0, clip(i - j, 2) + 2]
        return q[b, h, i] @ (k[b, h, j] + relation) / math.sqrt(D)

    out = attention(q, k, v, position=positions.QueryTable(table))
    torch.testing.assert_close(out, by_hand(q, k, v, score))


def test_deberta_sums_three_products():
    """He et al. 2021, equation 4, with δ clipped and the scale 1 / sqrt(3d)."""
    q, k, v = tensors()
    c2p, p2c = torch.randn(2, H, 2 * 3 + 1, D, dtype=torch.float64)

    def score(b, h, i, j):
        index = clip(i - j, 3) + 3
        products = q[b, h, i] @ k[b, h, j] + q[b, h, i] @ c2p[h, index] + k[b, h, j] @ p2c[h, index]
        return products / math.sqrt(3 * D)

    position = (positions.QueryTable(c2p), positions.KeyTable(p2c))
    out = attention(q, k, v, position=position, scale=1 / math.sqrt(3 * D))
    torch.testing.assert_close(out, by_hand(q, k, v, score))


def test_transformer_xl_is_the_papers_sum_of_four_terms():
    """Dai et al. 2019, section 3.3: terms (a) to (d) with R_{i-j} = sinusoid."""
    q, k, v = tensors()
    u, w = torch.randn(2, H, D, dtype=torch.float64)
    weight = torch.randn(1, D, 8, dtype=torch.float64)

    def sinusoid(x):
        angles = [x / 10000 ** (f / 4) for f in range(4)]
        values = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        return torch.tensor(values, dtype=torch.float64)

    def score(b, h, i, j):
        r = weight[0] @ sinusoid(i + 2 - j)
        a, c = q[b, h, i] @ k[b, h, j], u[h] @ k[b, h, j]
        return (a + q[b, h, i] @ r + c + w[h] @ r) / math.sqrt(D)

    position = positions.TransformerXL(u, w, weight)
    out = attention(q, k, v, position=position, query_offset=2)
    torch.testing.assert_close(out, by_hand(q, k, v, score))


def test_alibi_slopes_and_penalty():
    """Press et al. 2022: 8 heads have slopes 1/2, 1/4, … 1/256."""
    assert positions.alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    twelve = positions.alibi_slopes(12).tolist()
    assert twelve[:8] == [2.0**-h for h in range(1, 9)]
    assert twelve[8:] == pytest.approx([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])
    q, k, v = tensors()
    slopes = positions.alibi_slopes(H).double()

    def score(b, h, i, j):
        return q[b, h, i] @ k[b, h, j] / math.sqrt(D) - slopes[h] * abs(i + 2 - j)

    out = attention(q, k, v, position=positions.Linear(slopes), causal=True, query_offset=2)
    expected = by_hand(q, k, v, score, seen=lambda b, i, j: j <= i + 2)
    torch.testing.assert_close(out, expected)


def test_rotary_turns_pairs_as_complex_numbers():
    """Su et al. 2021, equation 34, through complex multiplication."""
    q, k, v = tensors()

    def turned(x, position):
        pairs = torch.view_as_complex(x.view(-1, 2))
        angles = [position * 10000 ** (-2 * f / D) for f in range(D // 2)]
        return pairs * torch.polar(
            torch.ones(D // 2, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64)
        )

    def score(b, h, i, j):
        product = turned(q[b, h, i], i + 9) * turned(k[b, h, j], j).conj()
        return product.real.sum() / math.sqrt(D)

    out = attention(q, k, v, position=positions.Rotary(), query_offset=9)
    torch.testing.assert_close(out, by_hand(q, k, v, score))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (32, 256), (16, 64), (64, 1024)])
def test_t5_buckets_are_the_published_ones(bidirectional, buckets, max_distance):
    """Against the published formula, one distance at a time, its logarithm in float32 as there."""
    distances = torch.arange(-3 * max_distance, 3 * max_distance + 1)
    ours = positions.t5_bucket(distances, buckets, max_distance, bidirectional).tolist()
    side = buckets // 2 if bidirectional else buckets
    exact = side // 2
    for distance, bucket in zip(distances.tolist(), ours, strict=True):
        near = abs(distance) if bidirectional else max(distance, 0)
        if near < exact:
            expected = near
        else:
            ratio = torch.tensor(near / exact, dtype=torch.float32).log()
            step = ratio / math.log(max_distance / exact) * (side - exact)
            expected = min(exact + int(step), side - 1)
        after_query = bidirectional and distance < 0
        assert bucket == expected + (side if after_query else 0)


@pytest.mark.parametrize(("bidirectional", "reach"), [(True, 91), (False, 113)])
def test_t5_table_saturates_where_its_buckets_do(bidirectional, reach):
    torch.manual_seed(1)
    weight = torch.randn(32, H, dtype=torch.float64, requires_grad=True)
    table = positions.t5_table(weight, bidirectional).table
    assert table.shape == (H, 2 * reach + 1)
    distances = torch.arange(-400, 401)
    bucket = positions.t5_bucket(distances, 32, 128, bidirectional)
    expected = weight[bucket].T
    found = table[:, distances.clamp(-reach, reach) + reach]
    torch.testing.assert_close(found, expected)
    table.sum().backward()
    counts = torch.bincount(bucket[400 - reach : 401 + reach], minlength=32).double()
    torch.testing.assert_close(weight.grad, counts[:, None].expand(32, H))


def test_clipped_bias_is_added_after_scaling():
    q, k, v = tensors()
    table = torch.randn(H, 2 * 2 + 1, dtype=torch.float64)

    def score(b, h, i, j):
        return 0.5 * (q[b, h, i] @ k[b, h, j]) + table[h, clip(i - j, 2) + 2]

    out = attention(q, k, v, position=positions.ClippedBias(table), scale=0.5)
    torch.testing.assert_close(out, by_hand(q, k, v, score))


def test_grouped_heads_and_key_lengths():
    q, k, v = tensors(heads=4, keys=2)
    lengths = torch.tensor([3, 7])

    def score(b, h, i, j):
        return q[b, h, i] @ k[b, h // 2, j] / math.sqrt(D)

    out = attention(q, k, v, key_lengths=lengths)
    torch.testing.assert_close(out, by_hand(q, k, v, score, seen=lambda b, i, j: j < lengths[b]))


def test_packed_sequences_equal_each_alone():
    torch.manual_seed(3)
    q, k, v = torch.randn(3, 1, H, 9, D, dtype=torch.float64)
    position = positions.Linear(positions.alibi_slopes(H).double())
    packed = attention(
        q, k, v, position=position, causal=True, cu_seqlens=torch.tensor([0, 4, 5, 9])
    )
    for start, end in ((0, 4), (4, 5), (5, 9)):
        alone = attention(*(x[:, :, start:end] for x in (q, k, v)), position=position, causal=True)
        torch.testing.assert_close(packed[:, :, start:end], alone)


def test_query_that_sees_nothing_gives_zeros_and_no_gradient():
    q, k, v = (x.requires_grad_() for x in tensors())
    out, lse = attention(
        q, k, v, causal=True, query_offset=-2, key_lengths=torch.tensor([0, 7]), return_lse=True
    )
    assert not out[0].any() and not out[1, :, :2].any()
    assert (lse[0] == -math.inf).all() and lse[1, :, 2:].isfinite().all()
    out.sum().backward()
    for x in (q, k, v):
        assert x.grad.isfinite().all()
    assert not q.grad[0].any() and not q.grad[1, :, :2].any()


def test_gradients_of_every_input_are_right():
    torch.manual_seed(5)
    q, k, v = (torch.randn(1, 2, n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 4, 4))
    tables = [torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in "qk"]
    bias = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    slopes = torch.rand(2, dtype=torch.float64, requires_grad=True)
    u, w = (torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in "uv")
    weight = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)

    def run(q, k, v, query_table, key_table, bias, slopes, u, w, weight):
        position = (
            positions.Rotary(),
            positions.QueryTable(query_table),
            positions.KeyTable(key_table),
            positions.ClippedBias(bias),
            positions.Linear(slopes),
            positions.TransformerXL(u, w, weight),
        )
        return attention(q, k, v, position=position, causal=True, query_offset=1,
                         dropout_p=0.25, dropout_seed=7)  # fmt: skip

    assert torch.autograd.gradcheck(run, (q, k, v, *tables, bias, slopes, u, w, weight))


def test_philox_gives_the_published_test_vectors():
    """Known answers of the Random123 library for philox4x32-10."""
    words = [hex(int(w)) for w in _philox(0, torch.tensor(0))]
    assert words == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    ones = _philox((1 << 64) - 1, torch.tensor(-1), (1 << 64) - 1)
    assert [hex(int(w)) for w in ones] == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]


def test_dropout_has_its_share_and_follows_the_seed():
    kept = keep_mask((2, 3, 100, 101), 0.3, 11, "cpu")
    assert kept.double().mean().item() == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / kept.numel()))
    assert torch.equal(kept, keep_mask((2, 3, 100, 101), 0.3, 11, "cpu"))
    assert not torch.equal(kept, keep_mask((2, 3, 100, 101), 0.3, 12, "cpu"))


def test_scores_gradient_sums_to_zero_over_each_row_with_dropout_too():
    """What the saturated buckets' gradient rests on: softmax ignores a constant added to a row."""
    q, k, v = tensors()
    row = torch.zeros(H, 1, dtype=torch.float64, requires_grad=True)
    bias = positions.ClippedBias(row.expand(H, 3))
    out = attention(
        q, k, v, position=bias, causal=True, query_offset=2, dropout_p=0.4, dropout_seed=1
    )
    (out * torch.randn_like(out)).sum().backward()
    assert row.grad.abs().max() < 1e-14


def test_what_does_not_fit_is_refused():
    q, k, v = tensors()
    with pytest.raises(ValueError, match="shapes don't fit"):
        attention(q, k[..., :4], v)
    with pytest.raises(ValueError, match="3 key heads do not divide 4"):
        attention(q, k[:, :3], v[:, :3])
    with pytest.raises(ValueError, match="dropout needs dropout_seed"):
        attention(q, k, v, dropout_p=0.1)
    with pytest.raises(ValueError, match="cu_seqlens needs a batch of one"):
        attention(q, k, v, cu_seqlens=torch.tensor([0, 5]))
