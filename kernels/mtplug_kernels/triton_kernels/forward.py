"""Forward: one program per block of queries, one loop over blocks of keys.

Per sequence z, SPANS holds (first query, queries, first key, keys, position of the first query):
padded and packed batches differ only there and in BATCHED, 0 where all sequences lie in row 0.

Transformer-XL lengthens a query by Q2, (…, TAIL) with row stride stl, and every key by WAVES,
(keys, TAIL), which only depends on its position.

A row of QR and KR is WIDTH long, 2 * D + 1 and up to a multiple of 16 bytes.

Suffix-free names follow the flash literature: s scores, p weights, mx running maximum and total
running sum of a row (both (BM, 1)), acc the unnormalised output (BM, BV).
"""

import triton
import triton.language as tl

from mtplug_kernels.triton_kernels.scores import (
    kept,
    keys_to_visit,
    load_rows,
    load_tile,
    load_waves,
    query_constants,
    scores,
    span_of,
)

# Lengths and seeds change from batch to batch: no kernel of its own for those divisible by 16.
VARYING = ["q_rows", "k_rows", "offset", "blocks", "seed"]


@triton.jit(do_not_specialize=VARYING)
def forward(
    Q, K, V, Q2, WAVES, OUT, LSE, LEFT_P, TABLE, QR, KR, QFAR, KFAR, SLOPES, SPANS, REACH,
    sqz, sqh, sql, stl, soz, soh, sol, q_rows, k_rows, offset, blocks, H, GROUP, D, WIDTH, PAD,
    scale2, seed, threshold, inverse_keep, BATCHED: tl.constexpr, HAS_SPANS: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_LINEAR: tl.constexpr,
    HAS_REACH: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, NEED_LEFT: tl.constexpr,
    SIZE: tl.constexpr, VSIZE: tl.constexpr, TAIL: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    zh = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    z, h = (zh // H).to(tl.int64), (zh % H).to(tl.int64)
    g = h // GROUP
    q0, q_len, k0, k_len, offset = span_of(SPANS, z, q_rows, k_rows, offset, HAS_SPANS)
    if CAUSAL:
        block = blocks - 1 - block  # longest rows first
    m0 = block * BM
    if m0 >= q_len:
        return
    row, col = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
    feature, value = tl.arange(0, BD)[None, :], tl.arange(0, BV)[None, :]
    zb = z * BATCHED
    inside = m0 + row < q_len
    Q += zb * sqz + h * sqh + q0.to(tl.int64) * sql
    line = (zb * H + h) * q_rows + q0
    key_line = (zb * H + h) * k_rows + k0
    TABLE += h * (2 * PAD + 1)
    slope = tl.load(SLOPES + h)

    q = load_rows(Q, m0, row, sql, feature, q_len, SIZE)
    q2 = q
    if TAIL:
        q2 = load_rows(Q2 + line * stl, m0, row, stl, tl.arange(0, BT)[None, :], q_len, TAIL)
    far_left, far_right = query_constants(
        QFAR, TABLE, 2 * line - q0 + m0 + row, q_rows, inside, PAD, HAS_TABLE, HAS_QR
    )
    acc = tl.zeros([BM, BV], tl.float32)
    total = tl.zeros([BM, 1], tl.float32)
    total_left = tl.zeros([BM, 1], tl.float32)
    mx = tl.full([BM, 1], -1e30, tl.float32)  # finite: a row that sees nothing stays there
    first, end = keys_to_visit(REACH, zb * H + h, m0, offset, k_len, CAUSAL, HAS_REACH, BM, BN)
    for n0 in tl.range(first, end, BN):
        k = load_tile(K, zb, g, k0 + n0, BN, BD)
        waves = load_waves(WAVES, n0, TAIL)
        s, far, left, near = scores(
            q, k, q2, waves, TABLE, QR + line * WIDTH, KR + key_line * WIDTH, KFAR, far_left, far_right,
            slope, row, col, m0, n0, offset, 2 * key_line - k0 + n0, k_rows, q_len, k_len, D, WIDTH, PAD,
            TAIL, HAS_TABLE, HAS_QR, HAS_KR, HAS_LINEAR, CAUSAL, BM, BN, PRECISION,
        )  # fmt: skip
        far = far * scale2
        new = tl.maximum(mx, tl.max(s, 1, keep_dims=True) * scale2 + far)
        p = tl.exp2(s * scale2 - (new - far))
        shrink = tl.exp2(mx - new)
        total = total * shrink + tl.sum(p, 1, keep_dims=True)
        if NEED_LEFT:
            # Left tiles come first, so up to one of them all of the sum is of the left.
            total_left = tl.where(left & (near == 0), total, total_left * shrink)
            if near & (m0 + offset - n0 + BM > D):
                is_left = col <= m0 + offset - n0 + row - D
                total_left += tl.sum(tl.where(is_left, p, 0.0), 1, keep_dims=True)
        acc = acc * shrink
        if DROPOUT:
            p = kept(p, seed, threshold, row, col, m0, n0, z * H + h, inverse_keep)
        v = load_tile(V, zb, g, k0 + n0, BN, BV)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        mx = new
    inverse = tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)
    acc = acc * inverse
    lse = tl.where(total > 0, mx + tl.log2(tl.where(total > 0, total, 1.0)), float("inf"))
    OUT += zb * soz + h * soh + (q0 + m0).to(tl.int64) * sol
    tl.store(OUT + row * sol + value, acc.to(OUT.dtype.element_ty), mask=inside & (value < VSIZE))
    # In units of log2; +inf for a row that sees nothing makes its weights 0 in the backward pass.
    tl.store(LSE + line + m0 + row, lse, mask=inside)
    if NEED_LEFT:
        tl.store(LEFT_P + line + m0 + row, total_left * inverse, mask=inside)
