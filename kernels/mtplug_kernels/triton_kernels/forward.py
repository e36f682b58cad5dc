"""Forward: one program per block of queries, one loop over blocks of keys.

Per sequence z, SPANS holds (first query, queries, first key, keys, position of the first query):
padded and packed batches differ only there and in a batch stride of 0.

Suffix-free names follow the flash literature: s scores, p weights, mx running maximum and total
running sum of a row (both (BM, 1)), acc the unnormalised output (BM, BV).
"""

import triton
import triton.language as tl

from mtplug_kernels.triton_kernels.scores import add_positions, kept, load_rows


@triton.jit
def forward(
    Q, K, V, OUT, LSE, TABLE, QR, KR, SLOPES, SPANS,
    sqz, sqh, sql, skz, skh, skl, svz, svh, svl, soz, soh, sol, slz, slh,
    sqrz, sqrh, skrz, skrh, H, GROUP, D, PAD, scale2, seed, threshold, inverse_keep,
    HAS_TABLE: tl.constexpr, HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_LINEAR: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, SIZE: tl.constexpr, VSIZE: tl.constexpr,
    BD: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    z = tl.program_id(1).to(tl.int64) // H
    h = tl.program_id(1).to(tl.int64) % H
    g = h // GROUP
    q0, q_len = tl.load(SPANS + z * 5), tl.load(SPANS + z * 5 + 1)
    k0, k_len = tl.load(SPANS + z * 5 + 2), tl.load(SPANS + z * 5 + 3)
    offset = tl.load(SPANS + z * 5 + 4)
    block = tl.program_id(0)
    if CAUSAL:
        block = tl.num_programs(0) - 1 - block  # longest rows first
    m0 = block * BM
    if m0 >= q_len:
        return
    row, col = tl.arange(0, BM)[:, None], tl.arange(0, BN)
    feature, value = tl.arange(0, BD)[None, :], tl.arange(0, BV)[None, :]
    width = 2 * D + 1
    Q += z * sqz + h * sqh + q0.to(tl.int64) * sql
    K += z * skz + g * skh + k0.to(tl.int64) * skl
    V += z * svz + g * svh + k0.to(tl.int64) * svl
    QR += z * sqrz + h * sqrh + q0.to(tl.int64) * width
    KR += z * skrz + h * skrh + k0.to(tl.int64) * width
    TABLE += h * (2 * PAD + 1)
    slope = tl.load(SLOPES + h)

    q = load_rows(Q, m0, row, sql, feature, q_len, SIZE)
    acc = tl.zeros([BM, BV], tl.float32)
    total = tl.zeros([BM, 1], tl.float32)
    mx = tl.full([BM, 1], -1e30, tl.float32)  # finite: a row that sees nothing stays there
    end = k_len
    if CAUSAL:
        end = tl.minimum(k_len, tl.maximum(m0 + BM + offset, 0))
    for n0 in tl.range(0, end, BN):
        k = load_rows(K, n0, col[:, None], skl, feature, k_len, SIZE)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s, far = add_positions(
            s, TABLE, QR, KR, slope, row, col[None, :], m0, n0, offset, q_len, k_len, D, PAD,
            HAS_TABLE, HAS_QR, HAS_KR, HAS_LINEAR, CAUSAL, BM, BN,
        )  # fmt: skip
        far = far * scale2
        new = tl.maximum(mx, tl.max(s, 1, keep_dims=True) * scale2 + far)
        p = tl.exp2(s * scale2 - (new - far))
        shrink = tl.exp2(mx - new)
        total = total * shrink + tl.sum(p, 1, keep_dims=True)
        acc = acc * shrink
        if DROPOUT:
            p = kept(p, seed, threshold, row, col[None, :], m0, n0, z * H + h, inverse_keep)
        v = load_rows(V, n0, col[:, None], svl, value, k_len, VSIZE)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        mx = new
    acc = acc * tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)
    lse = tl.where(total > 0, mx + tl.log2(tl.where(total > 0, total, 1.0)), float("inf"))
    inside = m0 + row < q_len
    OUT += z * soz + h * soh + (q0 + m0).to(tl.int64) * sol
    tl.store(OUT + row * sol + value, acc.to(OUT.dtype.element_ty), mask=inside & (value < VSIZE))
    # In units of log2; +inf for a row that sees nothing makes its weights 0 in the backward pass.
    tl.store(LSE + z * slz + h * slh + q0 + m0 + row, lse, mask=inside)
