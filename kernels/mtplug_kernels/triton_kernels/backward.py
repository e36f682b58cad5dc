"""Backward without atomics, by kernels that recompute p from the saved logsumexp.

1. ``backward_queries`` owns a block of queries: dQ, and delta' = delta + rho, where delta = dO.O
   and rho is the row sum of dS that rounding of O left over. It also sums a row's dS over the
   left side, from which all far columns follow because a row of dS sums to zero. LSES are its
   logsumexp less what a tile on the right, on the left or near adds to the row.
2. ``backward_keys`` owns a block of keys: dK, dV, and for a key table the sums of a column's dS
   over either far side. A thread holds all queries of a tile, so one look-up of LSES beats two.
3. ``backward_products`` owns a block of queries and visits its near tiles once more: every (row,
   clipped distance) inside the clip has one key, so the gradients of the query and key tables'
   products are plain copies of dS. In 2, their addresses would take the registers of the tile.
4. ``backward_table`` owns a tile's offset from the diagonal: all tiles of equal offset look up the
   same entries, so their dS is added tile on tile and folded along diagonals once.
5. ``finish_table`` adds the far columns to what 4 found.

2, 3 and 4 use delta'. Names as in forward.py; ds is dS, the gradient of the logits.
"""

import triton
import triton.language as tl

from mtplug_kernels.triton_kernels.forward import VARYING
from mtplug_kernels.triton_kernels.scores import (
    add_positions,
    constants,
    kept,
    keys_to_visit,
    load_rows,
    load_tile,
    load_waves,
    queries_to_visit,
    query_constants,
    read_only,
    row_constant,
    scores,
    sides,
    span_of,
)


@triton.jit(do_not_specialize=VARYING)
def backward_queries(
    Q, K, V, Q2, WAVES, OUT, DO, DQ, DQ2, LSE, LEFT_P, LSES, DELTA, LEFT, LEFTS, DSLOPE, TABLE, QR, KR, QFAR, KFAR, SLOPES, SPANS, REACH,
    sqz, sqh, sql, soz, soh, sol, sdz, sdh, sdl, sgz, sgh, sgl, stl,
    q_rows, k_rows, offset, blocks, H, GROUP, D, WIDTH, PAD,
    scale, scale2, seed, threshold, inverse_keep, BATCHED: tl.constexpr, HAS_SPANS: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_LINEAR: tl.constexpr,
    HAS_REACH: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, NEED_LEFT: tl.constexpr,
    NEED_SLOPE: tl.constexpr, HAS_LSES: tl.constexpr, SIZE: tl.constexpr, VSIZE: tl.constexpr,
    TAIL: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    zh = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    z, h = (zh // H).to(tl.int64), (zh % H).to(tl.int64)
    g = h // GROUP
    q0, q_len, k0, k_len, offset = span_of(SPANS, z, q_rows, k_rows, offset, HAS_SPANS)
    if CAUSAL:
        block = blocks - 1 - block
    m0 = block * BM
    if m0 >= q_len:
        return
    row, col = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
    feature, value = tl.arange(0, BD)[None, :], tl.arange(0, BV)[None, :]
    zb = z * BATCHED
    inside = m0 + row < q_len
    Q += zb * sqz + h * sqh + q0.to(tl.int64) * sql
    OUT += zb * soz + h * soh + q0.to(tl.int64) * sol
    DO += zb * sdz + h * sdh + q0.to(tl.int64) * sdl
    line = (zb * H + h) * q_rows + q0
    key_line = (zb * H + h) * k_rows + k0
    TABLE += h * (2 * PAD + 1)
    slope = tl.load(SLOPES + h)

    q = load_rows(Q, m0, row, sql, feature, q_len, SIZE)
    q2 = q
    if TAIL:
        tail = tl.arange(0, BT)[None, :]
        q2 = load_rows(Q2 + line * stl, m0, row, stl, tail, q_len, TAIL)
        dq2 = tl.zeros([BM, BT], tl.float32)
    do = load_rows(DO, m0, row, sdl, value, q_len, VSIZE)
    o = load_rows(OUT, m0, row, sol, value, q_len, VSIZE)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1, keep_dims=True)
    lse = tl.load(LSE + line + m0 + row, mask=inside, other=float("inf"))
    far_left, far_right = query_constants(
        QFAR, TABLE, 2 * line - q0 + m0 + row, q_rows, inside, PAD, HAS_TABLE, HAS_QR
    )
    dq = tl.zeros([BM, BD], tl.float32)
    rho = tl.zeros([BM, 1], tl.float32)
    left_ds = tl.zeros([BM, 1], tl.float32)
    slope_ds = tl.zeros([BM, 1], tl.float32)
    slope_p = tl.zeros([BM, 1], tl.float32)
    first, end = keys_to_visit(REACH, zb * H + h, m0, offset, k_len, CAUSAL, HAS_REACH, BM, BN)
    for n0 in tl.range(first, end, BN):
        k = load_tile(K, zb, g, k0 + n0, BN, BD)
        waves = load_waves(WAVES, n0, TAIL)
        s, far, left, near = scores(
            q, k, q2, waves, TABLE, QR + line * WIDTH, KR + key_line * WIDTH, KFAR, far_left, far_right,
            slope, row, col, m0, n0, offset, 2 * key_line - k0 + n0, k_rows, q_len, k_len, D, WIDTH, PAD,
            TAIL, HAS_TABLE, HAS_QR, HAS_KR, HAS_LINEAR, CAUSAL, BM, BN, PRECISION,
        )  # fmt: skip
        p = tl.exp2(s * scale2 - (lse - far * scale2))
        v = load_tile(V, zb, g, k0 + n0, BN, BV)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            dp = kept(dp, seed, threshold, row, col, m0, n0, z * H + h, inverse_keep)
        ds = p * (dp - delta)
        rho += tl.sum(ds, 1, keep_dims=True)
        if NEED_LEFT:
            # Left tiles come first, so up to one of them all of the sum is of the left.
            left_ds = tl.where(left & (near == 0), rho, left_ds)
            if near & (m0 + offset - n0 + BM > D):
                is_left = col <= m0 + offset - n0 + row - D
                left_ds += tl.sum(tl.where(is_left, ds, 0.0), 1, keep_dims=True)
        if NEED_SLOPE:
            distance = tl.abs((m0 + offset - n0 + row).to(tl.float32) - col.to(tl.float32))
            slope_ds += tl.sum(ds * distance, 1, keep_dims=True)
            slope_p += tl.sum(p * distance, 1, keep_dims=True)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        if TAIL:
            dq2 = tl.dot(ds.to(k.dtype), waves, dq2, input_precision=PRECISION)
    DQ += zb * sgz + h * sgh + (q0 + m0).to(tl.int64) * sgl
    dq = (dq * scale).to(DQ.dtype.element_ty)
    tl.store(DQ + row * sgl + feature, dq, mask=inside & (feature < SIZE))
    if TAIL:
        dq2 = (dq2 * scale).to(DQ2.dtype.element_ty)
        tl.store(DQ2 + (line + m0) * stl + row * stl + tail, dq2, mask=inside & (tail < TAIL))
    tl.store(DELTA + line + m0 + row, delta + rho, mask=inside)
    if HAS_LSES:
        at = LSES + 3 * line - 2 * q0 + m0 + row
        tl.store(at, lse - far_right * scale2, mask=inside)
        tl.store(at + q_rows, lse - far_left * scale2, mask=inside)
        tl.store(at + 2 * q_rows, lse, mask=inside)
    if NEED_LEFT:
        left_p = tl.load(LEFT_P + line + m0 + row, mask=inside, other=0.0)
        left_ds -= left_p * rho
        if HAS_QR:
            tl.store(LEFT + line + m0 + row, left_ds, mask=inside)
        if HAS_TABLE:
            tl.store(LEFTS + zh * blocks + block, tl.sum(left_ds))
    if NEED_SLOPE:
        tl.store(DSLOPE + line + m0 + row, slope_p * rho - slope_ds, mask=inside)


@triton.jit(do_not_specialize=VARYING)
def backward_keys(
    Q, K, V, Q2, WAVES, DO, DK, DV, DKR, LSE, LSES, DELTA, TABLE, QR, KR, KFAR, SLOPES, SPANS, REACH,
    skz, skh, skl, svz, svh, svl, sgkz, sgkh, sgkl, sgvz, sgvh, sgvl, stl,
    q_rows, k_rows, offset, blocks, G, GROUP, D, WIDTH, PAD,
    scale, scale2, seed, threshold, inverse_keep, BATCHED: tl.constexpr, HAS_SPANS: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_LINEAR: tl.constexpr,
    HAS_REACH: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, HAS_LSES: tl.constexpr,
    TOGETHER: tl.constexpr, SIZE: tl.constexpr, VSIZE: tl.constexpr, TAIL: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    zg = tl.program_id(0) // blocks
    n0 = tl.program_id(0) % blocks * BN
    z, g = (zg // G).to(tl.int64), (zg % G).to(tl.int64)
    H = G * GROUP
    q0, q_len, k0, k_len, offset = span_of(SPANS, z, q_rows, k_rows, offset, HAS_SPANS)
    if n0 >= k_len:  # padding keys keep the zeros that the host wrote
        return
    row, col = tl.arange(0, BM)[None, :], tl.arange(0, BN)[:, None]
    feature, value = tl.arange(0, BD)[None, :], tl.arange(0, BV)[None, :]
    zb = z * BATCHED
    exists = n0 + col < k_len
    K += zb * skz + g * skh + k0.to(tl.int64) * skl
    V += zb * svz + g * svh + k0.to(tl.int64) * svl
    k = load_rows(K, n0, col, skl, feature, k_len, SIZE)
    if TAIL:
        waves = load_rows(WAVES, n0, col, stl, tl.arange(0, BT)[None, :], k_len, TAIL)
    v = load_rows(V, n0, col, svl, value, k_len, VSIZE)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BV], tl.float32)
    for member in range(0, GROUP):
        h = g * GROUP + member
        line = (zb * H + h) * q_rows + q0
        key_line = (zb * H + h) * k_rows + k0
        TABLEh = TABLE + h * (2 * PAD + 1)
        slope = tl.load(SLOPES + h)
        add_left, add_right = constants(KFAR, 2 * key_line - k0 + n0 + col, k_rows, exists, HAS_KR)
        table_left, table_right = 0.0, 0.0
        if HAS_TABLE and not HAS_LSES:
            table_left, table_right = tl.load(TABLEh), tl.load(TABLEh + 2 * PAD)
        left_ds = tl.zeros([BN, 1], tl.float32)
        right_ds = tl.zeros([BN, 1], tl.float32)
        first, end = queries_to_visit(
            REACH, zb * H + h, n0, offset, q_len, k_len, CAUSAL, HAS_REACH, BM, BN
        )
        for m0 in tl.range(first, end, BM):
            q = load_tile(Q, zb, h, q0 + m0, BM, BD)
            s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            if TAIL:
                q2 = load_tile(Q2, zb, h, q0 + m0, BM, BT)
                s = tl.dot(waves, tl.trans(q2), s, input_precision=PRECISION)
            if TOGETHER:
                do = load_tile(DO, zb, h, q0 + m0, BM, BV)
                dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            inside = m0 + row < q_len
            left, near = sides(m0, n0, offset, k_len, D, CAUSAL, BM, BN)
            if HAS_KR:
                s += tl.where(near, 0.0, tl.where(left, add_left, add_right))
            s = add_positions(
                s, TABLEh, QR + line * WIDTH, KR + key_line * WIDTH, slope, row, col, m0, n0,
                offset, q_len, k_len, D, WIDTH, PAD, left, near,
                HAS_TABLE, HAS_QR, HAS_KR, HAS_LINEAR, CAUSAL, BM, BN,
            )  # fmt: skip
            if HAS_LSES:
                far = 0.0
                at_lse = LSES + 3 * line - 2 * q0 + tl.where(near, 2, tl.where(left, 1, 0)) * q_rows
            else:
                far = tl.where(left, table_left, table_right)
                at_lse = LSE + line
            far = row_constant(far, slope, row, m0 + offset - n0, left, near, HAS_LINEAR)
            lse = tl.load(at_lse + m0 + row, mask=inside, other=float("inf"))
            p = tl.exp2(s * scale2 - (lse - far * scale2))
            delta = tl.load(DELTA + line + m0 + row, mask=inside, other=0.0)
            if TOGETHER:
                dp -= delta
                kept_p = p
            else:
                do = load_tile(DO, zb, h, q0 + m0, BM, BV)
                if DROPOUT:
                    dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
                    factor = kept(1.0, seed, threshold, row, col, m0, n0, z * H + h, inverse_keep)
                    dp = dp * factor - delta
                    kept_p = p * factor
                else:
                    minus = tl.broadcast_to(-delta, [BN, BM])
                    dp = tl.dot(v, tl.trans(do), minus, input_precision=PRECISION)
                    kept_p = p
            dv = tl.dot(kept_p.to(do.dtype), do, dv, input_precision=PRECISION)
            ds = p * dp
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
            if HAS_KR:
                of_left = tl.sum(ds, 1, keep_dims=True)
                of_right = of_left
                if near:
                    place = m0 + offset - n0 + row
                    of_left = tl.sum(tl.where(place >= col + D, ds, 0.0), 1, keep_dims=True)
                    of_right = tl.sum(tl.where(place <= col - D, ds, 0.0), 1, keep_dims=True)
                left_ds += tl.where(left | near, of_left, 0.0)
                right_ds += tl.where((left == 0) | near, of_right, 0.0)
        if HAS_KR:
            # A column of dS does not sum to zero, so both far sides are summed.
            at_key = DKR + (key_line + n0 + col) * WIDTH
            tl.store(at_key, (right_ds * scale).to(DKR.dtype.element_ty), mask=exists)
            tl.store(at_key + 2 * D, (left_ds * scale).to(DKR.dtype.element_ty), mask=exists)
    DK += zb * sgkz + g * sgkh + (k0 + n0).to(tl.int64) * sgkl
    DV += zb * sgvz + g * sgvh + (k0 + n0).to(tl.int64) * sgvl
    dk = (dk * scale).to(DK.dtype.element_ty)
    tl.store(DK + col * sgkl + feature, dk, mask=exists & (feature < SIZE))
    tl.store(DV + col * sgvl + value, dv.to(DV.dtype.element_ty), mask=exists & (value < VSIZE))


@triton.jit(do_not_specialize=VARYING)
def backward_products(
    Q, K, V, Q2, WAVES, DO, DQR, DKR, LSE, DELTA, LEFT, TABLE, QR, KR, QFAR, KFAR, SLOPES, SPANS,
    sqz, sqh, sql, sdz, sdh, sdl, stl, q_rows, k_rows, offset, blocks, H, GROUP, D, WIDTH, PAD,
    scale, scale2, seed, threshold, inverse_keep, BATCHED: tl.constexpr, HAS_SPANS: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_LINEAR: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, SIZE: tl.constexpr, VSIZE: tl.constexpr,
    TAIL: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    zh = tl.program_id(0) // blocks
    m0 = tl.program_id(0) % blocks * BM
    z, h = (zh // H).to(tl.int64), (zh % H).to(tl.int64)
    g = h // GROUP
    q0, q_len, k0, k_len, offset = span_of(SPANS, z, q_rows, k_rows, offset, HAS_SPANS)
    if m0 >= q_len:
        return
    row, col = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
    feature, value = tl.arange(0, BD)[None, :], tl.arange(0, BV)[None, :]
    zb = z * BATCHED
    inside = m0 + row < q_len
    Q += zb * sqz + h * sqh + q0.to(tl.int64) * sql
    DO += zb * sdz + h * sdh + q0.to(tl.int64) * sdl
    line = (zb * H + h) * q_rows + q0
    key_line = (zb * H + h) * k_rows + k0
    TABLE += h * (2 * PAD + 1)
    slope = tl.load(SLOPES + h)

    q = load_rows(Q, m0, row, sql, feature, q_len, SIZE)
    q2 = q
    if TAIL:
        tail = tl.arange(0, BT)[None, :]
        q2 = load_rows(Q2 + line * stl, m0, row, stl, tail, q_len, TAIL)
    do = load_rows(DO, m0, row, sdl, value, q_len, VSIZE)
    lse = tl.load(LSE + line + m0 + row, mask=inside, other=float("inf"))
    delta = tl.load(DELTA + line + m0 + row, mask=inside, other=0.0)
    far_left, far_right = query_constants(
        QFAR, TABLE, 2 * line - q0 + m0 + row, q_rows, inside, PAD, HAS_TABLE, HAS_QR
    )
    near_ds = tl.zeros([BM, 1], tl.float32)
    end = m0 + offset + BM - 1 + D
    if CAUSAL:
        end = m0 + offset + BM
    for n0 in tl.range(tl.maximum(m0 + offset - D + 1, 0) // BN * BN, tl.minimum(end, k_len), BN):
        k = load_tile(K, zb, g, k0 + n0, BN, BD)
        waves = load_waves(WAVES, n0, TAIL)
        s, far, _, _ = scores(
            q, k, q2, waves, TABLE, QR + line * WIDTH, KR + key_line * WIDTH, KFAR, far_left, far_right,
            slope, row, col, m0, n0, offset, 2 * key_line - k0 + n0, k_rows, q_len, k_len, D, WIDTH, PAD,
            TAIL, HAS_TABLE, HAS_QR, HAS_KR, HAS_LINEAR, CAUSAL, BM, BN, PRECISION,
        )  # fmt: skip
        p = tl.exp2(s * scale2 - (lse - far * scale2))
        v = load_tile(V, zb, g, k0 + n0, BN, BV)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            dp = kept(dp, seed, threshold, row, col, m0, n0, z * H + h, inverse_keep)
        ds = p * (dp - delta)
        distance = m0 + offset - n0 + row - col
        clip = (tl.abs(distance) < D) & inside & (n0 + col < k_len)
        near_ds += tl.sum(tl.where(clip, ds, 0.0), 1, keep_dims=True)
        copy = (ds * scale).to(Q.dtype.element_ty)
        if HAS_QR:
            at_query = DQR + (line + m0) * WIDTH
            tl.store(at_query + (row * WIDTH + distance + D), copy, mask=clip)
        if HAS_KR:
            at_key = DKR + (key_line + n0) * WIDTH
            tl.store(at_key + (col * WIDTH + distance + D), copy, mask=clip)
    if HAS_QR:
        # A row without keys on the side that follows has zero there, and not what rounding leaves.
        place = m0 + offset + row
        if CAUSAL:
            far_left = tl.where(place >= D, -near_ds, 0.0)
            far_right = near_ds * 0.0
        else:
            far_left = tl.load(LEFT + line + m0 + row, mask=inside, other=0.0)
            far_right = tl.where(place + D < k_len, -(near_ds + far_left), 0.0)
        at_query = DQR + (line + m0 + row) * WIDTH
        tl.store(at_query, (far_right * scale).to(DQR.dtype.element_ty), mask=inside)
        tl.store(at_query + 2 * D, (far_left * scale).to(DQR.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def backward_table(
    Q, K, V, Q2, WAVES, DO, FOLD, LSE, DELTA, TABLE, QR, KR, QFAR, KFAR, SLOPES, SPANS,
    q_rows, k_rows, offset, blocks, Z, H, GROUP, D, WIDTH, PAD,
    scale2, seed, threshold, inverse_keep, BATCHED: tl.constexpr, HAS_SPANS: tl.constexpr,
    HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_LINEAR: tl.constexpr,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr,
    TAIL: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Tiles begin at the first key inside the clip, not at multiples of BN: fewer hold all of them.
    ahead = tl.program_id(0) * BN - (D - 1)
    h = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    parts = tl.num_programs(2)
    g = h // GROUP
    row, col = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
    slope = tl.load(SLOPES + h)
    TABLE += h * (2 * PAD + 1)
    total = tl.zeros([BM, BN], tl.float32)
    share = tl.cdiv(Z * blocks, parts)
    first = part * share
    z = (first // blocks).to(tl.int64)
    m0 = first % blocks * BM
    base = tl.minimum(tl.maximum(ahead, BM - PAD), PAD - BN) + PAD
    bias = read_only((TABLE + base + col) - row)
    # Triton before 3.6 takes `_` for one variable, here and where results are unpacked.
    for _step in tl.range(first, tl.minimum(first + share, Z * blocks)):
        zb = z * BATCHED
        q0, q_len, k0, k_len, start = span_of(SPANS, z, q_rows, k_rows, offset, HAS_SPANS)
        n0 = m0 + start + ahead
        line = (zb * H + h) * q_rows + q0
        key_line = (zb * H + h) * k_rows + k0
        inside = m0 + row < q_len
        lse = tl.load(LSE + line + m0 + row, mask=inside, other=float("inf"))
        delta = tl.load(DELTA + line + m0 + row, mask=inside, other=0.0)
        q = load_tile(Q, zb, h, q0 + m0, BM, BD)
        k = load_tile(K, zb, g, k0 + n0, BN, BD)
        q2 = q
        if TAIL:
            q2 = load_tile(Q2, zb, h, q0 + m0, BM, BT)
        waves = load_waves(WAVES, n0, TAIL)
        far_left, far_right = query_constants(
            QFAR, TABLE, 2 * line - q0 + m0 + row, q_rows, inside, PAD, False, HAS_QR
        )
        s, far, _, _ = scores(
            q, k, q2, waves, TABLE, QR + line * WIDTH, KR + key_line * WIDTH, KFAR, far_left, far_right,
            slope, row, col, m0, n0, start, 2 * key_line - k0 + n0, k_rows,
            # Of no queries or keys there is no last one.
            tl.maximum(q_len, 1 - q0), tl.maximum(k_len, 1 - k0), D, WIDTH, PAD,
            TAIL, False, HAS_QR, HAS_KR, HAS_LINEAR, CAUSAL, BM, BN, PRECISION, OUTSIDE=True,
        )  # fmt: skip
        s += bias
        p = tl.exp2(s * scale2 - (lse - far * scale2))
        v = load_tile(V, zb, g, k0 + n0, BN, BV)
        do = load_tile(DO, zb, h, q0 + m0, BM, BV)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            dp = kept(dp, seed, threshold, row, col, m0, n0, z * H + h, inverse_keep)
        total += tl.where((n0 + col >= 0) & (n0 + col < k_len), p * (dp - delta), 0.0)
        m0 += BM
        done = m0 >= blocks * BM
        z += tl.where(done, 1, 0)
        m0 = tl.where(done, 0, m0)
    # In a line for each row that begins at i - j = -(D - 1) - BM - BN: a diagonal is a column, and the
    # tiles of a row lie side by side.
    length = 2 * (D - 1) + 2 * BM + BN
    FOLD += (h * parts + part) * BM * length + (D - 1 + BM + BN - ahead)
    tl.store(FOLD + row * length + (row - col), total)


@triton.jit
def has_far(queries, keys, first, D, CAUSAL: tl.constexpr):
    """Whether the last query is D or more after the first key; both ways, the last key after the first query."""
    reached = first + queries - 1 if CAUSAL else keys - 1 - first
    return (queries > 0) & (keys > 0) & (reached >= D)


@triton.jit(do_not_specialize=VARYING)
def finish_table(
    NEAR, LEFTS, DTABLE, SPANS, q_rows, k_rows, offset, blocks, Z, D, near_step,
    HAS_SPANS: tl.constexpr, CAUSAL: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, MANY)
    DTABLE += h * (2 * D + 1)
    rest = 0.0  # all but the far side that follows
    for c0 in tl.range(0, 2 * D - 1, MANY):
        inside = c0 + column < 2 * D - 1
        near = tl.load(NEAR + h * near_step + c0 + column, mask=inside, other=0.0)
        tl.store(DTABLE + 1 + c0 + column, near, mask=inside)
        rest += tl.sum(near)
    left = 0.0
    if not CAUSAL:
        for n0 in tl.range(0, Z * blocks, MANY):
            n = n0 + column
            at = (n // blocks * tl.num_programs(0) + h) * blocks + n % blocks
            left += tl.sum(tl.load(LEFTS + at, mask=n < Z * blocks, other=0.0))
        rest += left
    # A row of dS sums to zero: one side follows. Where no distance is on it, its gradient is zero, and not
    # what rounding leaves of the sums: Adam would make whole steps of that.
    if HAS_SPANS:
        far = 0
        for z0 in tl.range(0, Z, MANY):
            at = SPANS + (z0 + column) * 5
            exists = z0 + column < Z
            queries = tl.load(at + 1, mask=exists, other=0)
            keys = tl.load(at + 3, mask=exists, other=0)
            first = tl.load(at + 4, mask=exists, other=0)
            there = has_far(queries, keys, first, D, CAUSAL)
            far = tl.maximum(far, tl.max(there.to(tl.int32)))
    else:
        far = has_far(q_rows, k_rows, offset, D, CAUSAL).to(tl.int32)
    follows = tl.where(far > 0, -rest, 0.0)
    if CAUSAL:
        tl.store(DTABLE, 0.0)
        tl.store(DTABLE + 2 * D, follows)
    else:
        tl.store(DTABLE, follows)
        tl.store(DTABLE + 2 * D, left)
