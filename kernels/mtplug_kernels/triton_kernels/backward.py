"""Backward in three kernels without atomics; each recomputes p from the saved logsumexp.

1. ``backward_queries`` owns a block of queries: dQ, and delta' = delta + rho, where delta = dO.O
   and rho is the row sum of dS that rounding of O left over. It also sums a row's dS over the
   left side, from which all far columns follow because a row of dS sums to zero.
2. ``backward_keys`` owns a block of keys: dK, dV, and, every (row, clipped distance) inside the
   clip having one key, plain copies of dS into the gradients of the query and key tables' products.
3. ``backward_table`` owns a tile's offset from the diagonal: all tiles of equal offset look up the
   same entries, so their dS is added tile on tile and folded along diagonals once.

2 and 3 use delta'. Names as in forward.py; ds is dS, the gradient of the logits.
"""

import triton
import triton.language as tl

from mtplug_kernels.triton_kernels.scores import add_positions, kept, load_rows


@triton.jit
def backward_queries(
    Q, K, V, OUT, DO, DQ, LSE, DELTA, LEFT, DSLOPE, TABLE, QR, KR, SLOPES, SPANS,
    sqz, sqh, sql, skz, skh, skl, svz, svh, svl, soz, soh, sol, sdz, sdh, sdl, sgz, sgh, sgl,
    slz, slh, sqrz, sqrh, skrz, skrh, H, GROUP, D, PAD,
    scale, scale2, seed, threshold, inverse_keep,
    HAS_TABLE: tl.constexpr, HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_LINEAR: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, NEED_LEFT: tl.constexpr,
    NEED_SLOPE: tl.constexpr, SIZE: tl.constexpr, VSIZE: tl.constexpr,
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
        block = tl.num_programs(0) - 1 - block
    m0 = block * BM
    if m0 >= q_len:
        return
    row, col = tl.arange(0, BM)[:, None], tl.arange(0, BN)
    feature, value = tl.arange(0, BD)[None, :], tl.arange(0, BV)[None, :]
    width = 2 * D + 1
    Q += z * sqz + h * sqh + q0.to(tl.int64) * sql
    K += z * skz + g * skh + k0.to(tl.int64) * skl
    V += z * svz + g * svh + k0.to(tl.int64) * svl
    OUT += z * soz + h * soh + q0.to(tl.int64) * sol
    DO += z * sdz + h * sdh + q0.to(tl.int64) * sdl
    QR += z * sqrz + h * sqrh + q0.to(tl.int64) * width
    KR += z * skrz + h * skrh + k0.to(tl.int64) * width
    TABLE += h * (2 * PAD + 1)
    slope = tl.load(SLOPES + h)
    line = z * slz + h * slh + q0 + m0 + row
    inside = m0 + row < q_len

    q = load_rows(Q, m0, row, sql, feature, q_len, SIZE)
    do = load_rows(DO, m0, row, sdl, value, q_len, VSIZE)
    o = load_rows(OUT, m0, row, sol, value, q_len, VSIZE)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1, keep_dims=True)
    lse = tl.load(LSE + line, mask=inside, other=float("inf"))
    dq = tl.zeros([BM, BD], tl.float32)
    rho = tl.zeros([BM, 1], tl.float32)
    left_ds = tl.zeros([BM, 1], tl.float32)
    left_p = tl.zeros([BM, 1], tl.float32)
    slope_ds = tl.zeros([BM, 1], tl.float32)
    slope_p = tl.zeros([BM, 1], tl.float32)
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
        p = tl.exp2(s * scale2 - (lse - far * scale2))
        v = load_rows(V, n0, col[:, None], svl, value, k_len, VSIZE)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            dp = kept(dp, seed, threshold, row, col[None, :], m0, n0, z * H + h, inverse_keep)
        ds = p * (dp - delta)
        rho += tl.sum(ds, 1, keep_dims=True)
        if NEED_LEFT:
            is_left = m0 + offset - n0 + row - col[None, :] >= D
            left_ds += tl.sum(tl.where(is_left, ds, 0.0), 1, keep_dims=True)
            left_p += tl.sum(tl.where(is_left, p, 0.0), 1, keep_dims=True)
        if NEED_SLOPE:
            distance = tl.abs(m0 + offset - n0 + row - col[None, :]).to(tl.float32)
            slope_ds += tl.sum(ds * distance, 1, keep_dims=True)
            slope_p += tl.sum(p * distance, 1, keep_dims=True)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    DQ += z * sgz + h * sgh + (q0 + m0).to(tl.int64) * sgl
    dq = (dq * scale).to(DQ.dtype.element_ty)
    tl.store(DQ + row * sgl + feature, dq, mask=inside & (feature < SIZE))
    tl.store(DELTA + line, delta + rho, mask=inside)
    if NEED_LEFT:
        tl.store(LEFT + line, left_ds - left_p * rho, mask=inside)
    if NEED_SLOPE:
        tl.store(DSLOPE + line, slope_p * rho - slope_ds, mask=inside)


@triton.jit
def backward_keys(
    Q, K, V, DO, DK, DV, DQR, DKR, LSE, DELTA, TABLE, QR, KR, SLOPES, SPANS,
    sqz, sqh, sql, skz, skh, skl, svz, svh, svl, sdz, sdh, sdl,
    sgkz, sgkh, sgkl, sgvz, sgvh, sgvl,
    slz, slh, sqrz, sqrh, skrz, skrh, G, GROUP, D, PAD,
    scale, scale2, seed, threshold, inverse_keep,
    HAS_TABLE: tl.constexpr, HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_LINEAR: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, SIZE: tl.constexpr, VSIZE: tl.constexpr,
    BD: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    z = tl.program_id(1).to(tl.int64) // G
    g = tl.program_id(1).to(tl.int64) % G
    q0, q_len = tl.load(SPANS + z * 5), tl.load(SPANS + z * 5 + 1)
    k0, k_len = tl.load(SPANS + z * 5 + 2), tl.load(SPANS + z * 5 + 3)
    offset = tl.load(SPANS + z * 5 + 4)
    n0 = tl.program_id(0) * BN
    if n0 >= k_len:  # padding keys keep the zeros that the host wrote
        return
    row, col = tl.arange(0, BM)[None, :], tl.arange(0, BN)[:, None]
    down = tl.arange(0, BM)[:, None]
    feature, value = tl.arange(0, BD)[None, :], tl.arange(0, BV)[None, :]
    width = 2 * D + 1
    K += z * skz + g * skh + k0.to(tl.int64) * skl
    V += z * svz + g * svh + k0.to(tl.int64) * svl
    k = load_rows(K, n0, col, skl, feature, k_len, SIZE)
    v = load_rows(V, n0, col, svl, value, k_len, VSIZE)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BV], tl.float32)
    first = 0
    if CAUSAL:
        first = tl.maximum(n0 - offset, 0) // BM * BM
    for member in range(0, GROUP):
        h = g * GROUP + member
        Qh = Q + z * sqz + h * sqh + q0.to(tl.int64) * sql
        DOh = DO + z * sdz + h * sdh + q0.to(tl.int64) * sdl
        QRh = QR + z * sqrz + h * sqrh + q0.to(tl.int64) * width
        KRh = KR + z * skrz + h * skrh + k0.to(tl.int64) * width
        left_ds = tl.zeros([BN, 1], tl.float32)
        right_ds = tl.zeros([BN, 1], tl.float32)
        slope = tl.load(SLOPES + h)
        for m0 in tl.range(first, q_len, BM):
            q = load_rows(Qh, m0, down, sql, feature, q_len, SIZE)
            s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            s, far = add_positions(
                s, TABLE + h * (2 * PAD + 1), QRh, KRh, slope, row, col, m0, n0, offset,
                q_len, k_len, D, PAD,
                HAS_TABLE, HAS_QR, HAS_KR, HAS_LINEAR, CAUSAL, BM, BN,
            )  # fmt: skip
            line = z * slz + h * slh + q0 + m0 + row
            inside = m0 + row < q_len
            lse = tl.load(LSE + line, mask=inside, other=float("inf"))
            delta = tl.load(DELTA + line, mask=inside, other=0.0)
            p = tl.exp2(s * scale2 - (lse - far * scale2))
            do = load_rows(DOh, m0, down, sdl, value, q_len, VSIZE)
            dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            if DROPOUT:
                factor = kept(
                    1.0, seed, threshold, row, col, m0, n0, z * G * GROUP + h, inverse_keep
                )
                dp = dp * factor
                kept_p = p * factor
            else:
                kept_p = p
            dv = tl.dot(kept_p.to(do.dtype), do, dv, input_precision=PRECISION)
            ds = p * (dp - delta)
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
            if HAS_QR or HAS_KR:
                distance = m0 + offset - n0 + row - col
                clip = (tl.abs(distance) < D) & inside & (n0 + col < k_len)
                if HAS_QR:
                    at_query = DQR + z * sqrz + h * sqrh + (q0 + m0).to(tl.int64) * width
                    tl.store(at_query + row * width + distance + D, ds, mask=clip)
                if HAS_KR:
                    at_key = DKR + z * skrz + h * skrh + (k0 + n0).to(tl.int64) * width
                    tl.store(at_key + col * width + distance + D, ds, mask=clip)
                    left_ds += tl.sum(tl.where(distance >= D, ds, 0.0), 1, keep_dims=True)
                    right_ds += tl.sum(tl.where(distance <= -D, ds, 0.0), 1, keep_dims=True)
        if HAS_KR:
            # A column of dS does not sum to zero, so both far sides are summed.
            at_key = DKR + z * skrz + h * skrh + (k0 + n0).to(tl.int64) * width + col * width
            tl.store(at_key, right_ds, mask=n0 + col < k_len)
            tl.store(at_key + 2 * D, left_ds, mask=n0 + col < k_len)
    DK += z * sgkz + g * sgkh + (k0 + n0).to(tl.int64) * sgkl
    DV += z * sgvz + g * sgvh + (k0 + n0).to(tl.int64) * sgvl
    exists = n0 + col < k_len
    dk = (dk * scale).to(DK.dtype.element_ty)
    tl.store(DK + col * sgkl + feature, dk, mask=exists & (feature < SIZE))
    tl.store(DV + col * sgvl + value, dv.to(DV.dtype.element_ty), mask=exists & (value < VSIZE))


@triton.jit
def backward_table(
    Q, K, V, DO, FOLD, LSE, DELTA, TABLE, QR, KR, SLOPES, SPANS,
    sqz, sqh, sql, skz, skh, skl, svz, svh, svl, sdz, sdh, sdl,
    slz, slh, sqrz, sqrh, skrz, skrh, Z, H, GROUP, D, PAD, first_tile, rows,
    scale2, seed, threshold, inverse_keep,
    HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_LINEAR: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, SIZE: tl.constexpr, VSIZE: tl.constexpr,
    BD: tl.constexpr, BV: tl.constexpr, B: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    parts = tl.num_programs(2)
    g = h // GROUP
    row, col = tl.arange(0, B)[:, None], tl.arange(0, B)
    feature, value = tl.arange(0, BD)[None, :], tl.arange(0, BV)[None, :]
    width = 2 * D + 1
    slope = tl.load(SLOPES + h)
    total = tl.zeros([B, B], tl.float32)
    for work in tl.range(part, Z * rows, parts):
        z = (work // rows).to(tl.int64)
        m0 = (work % rows) * B
        q0, q_len = tl.load(SPANS + z * 5), tl.load(SPANS + z * 5 + 1)
        k0, k_len = tl.load(SPANS + z * 5 + 2), tl.load(SPANS + z * 5 + 3)
        offset = tl.load(SPANS + z * 5 + 4)
        n0 = m0 + offset + (first_tile + tile) * B
        Qz = Q + z * sqz + h * sqh + q0.to(tl.int64) * sql
        Kz = K + z * skz + g * skh + k0.to(tl.int64) * skl
        Vz = V + z * svz + g * svh + k0.to(tl.int64) * svl
        DOz = DO + z * sdz + h * sdh + q0.to(tl.int64) * sdl
        q = load_rows(Qz, m0, row, sql, feature, q_len, SIZE)
        k = load_rows(Kz, n0, col[:, None], skl, feature, k_len, SIZE)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s, far = add_positions(
            s, TABLE + h * (2 * PAD + 1), QR + z * sqrz + h * sqrh + q0.to(tl.int64) * width,
            KR + z * skrz + h * skrh + k0.to(tl.int64) * width, slope, row, col[None, :],
            m0, n0, offset, q_len, k_len, D, PAD,
            True, HAS_QR, HAS_KR, HAS_LINEAR, CAUSAL, B, B,
        )  # fmt: skip
        line = z * slz + h * slh + q0 + m0 + row
        lse = tl.load(LSE + line, mask=m0 + row < q_len, other=float("inf"))
        delta = tl.load(DELTA + line, mask=m0 + row < q_len, other=0.0)
        p = tl.exp2(s * scale2 - (lse - far * scale2))
        v = load_rows(Vz, n0, col[:, None], svl, value, k_len, VSIZE)
        do = load_rows(DOz, m0, row, sdl, value, q_len, VSIZE)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            dp = kept(dp, seed, threshold, row, col[None, :], m0, n0, z * H + h, inverse_keep)
        total += p * (dp - delta)
    # Skewed into (B, 2B): a diagonal becomes a column, which the host sums.
    FOLD += ((h * tl.num_programs(0) + tile) * parts + part) * (2 * B * B)
    tl.store(FOLD + row * (2 * B) + (col[None, :] - row + B), total)
