"""Decoding: few query rows against a long cache, whose keys are split among programs.

One program has a contiguous part of one sequence's keys and all query rows that read them: the
rows of all query heads that share a key head lie in one tile, so a key is loaded once. A second
kernel combines the parts in a fixed order. Two things that depend on every key are done here, tile
by tile, so that the cache is never copied: turning keys (Rotary) and Transformer-XL's sinusoids.

With n0 a tile's first key, an angle w (n0 + col) is split by angle addition: the query is turned
by -w n0 once a tile, and what remains, w col, is the same in every tile.

For query and key tables, ``near_products`` computes only what can be looked up: for a row, one
number for each clipped distance. Beyond the clip the key table's term is one more product of k
with the table's last row, taken in the main kernel.

Suffix-free names: see forward.py. A row r is (member of the group, query); line numbers rows over
the batch.
"""

import triton
import triton.language as tl

from mtplug_kernels.triton_kernels.scores import INTERPRETED, load_rows, read_only

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def near_products(
    Q, K, QTABLE, KTABLE, OUT, OFFSETS, LENGTHS,
    sqz, sqh, sql, skz, skh, skl, sqt, skt, H, GROUP, QUERIES, keys, QD, KD, D, first, scale,
    HAS_QTABLE: tl.constexpr, HAS_KTABLE: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    SIZE: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """OUT[line, c] = scale * (q.QTABLE[c] + k.KTABLE[c]), k being the key at that distance."""
    line = tl.program_id(0).to(tl.int64)
    i = line % QUERIES
    h = line // QUERIES % H
    z = line // QUERIES // H
    c = first + tl.program_id(1) * BC + tl.arange(0, BC)[:, None]
    feature = tl.arange(0, BD)[None, :]
    exists = (c <= 2 * D) & (feature < SIZE)
    distance = c - D
    total = tl.zeros([BC, 1], tl.float32)
    if HAS_QTABLE:
        at = tl.minimum(tl.maximum(distance, -QD), QD) + QD
        rows = tl.load(QTABLE + h * sqt + at * SIZE + feature, mask=exists, other=0.0)
        q = tl.load(Q + z * sqz + h * sqh + i * sql + feature, mask=feature < SIZE, other=0.0)
        total += tl.sum(rows.to(tl.float32) * q.to(tl.float32), 1, keep_dims=True)
    if HAS_KTABLE:
        at = tl.minimum(tl.maximum(distance, -KD), KD) + KD
        rows = tl.load(KTABLE + h * skt + at * SIZE + feature, mask=exists, other=0.0)
        length = keys
        if HAS_LENGTHS:
            length = tl.minimum(tl.load(LENGTHS + z).to(tl.int32), keys)
        j = tl.load(OFFSETS + z) + i - distance
        there = exists & (j >= 0) & (j < length) & (tl.abs(distance) < D)
        K += z * skz + h // GROUP * skh
        k = tl.load(K + j.to(tl.int64) * skl + feature, mask=there, other=0.0)
        total += tl.sum(rows.to(tl.float32) * k.to(tl.float32), 1, keep_dims=True)
    tl.store(OUT + line * (2 * D + 1) + c, total * scale, mask=c <= 2 * D)


@triton.jit
def load_turn(TURNS, place, feature, SIZE: tl.constexpr):
    """Cosines and sines of one or more rows of a table (rows, 2, SIZE); no turn beyond SIZE."""
    at = TURNS + place * (2 * SIZE) + feature
    cos = tl.load(at, mask=feature < SIZE, other=1.0)
    return cos, tl.load(at + SIZE, mask=feature < SIZE, other=0.0)


@triton.jit
def load_partner(rows, feature, exists, PAIR: tl.constexpr, SIZE: tl.constexpr):
    """For pairs (a, b) of features that turn together: b in a's place and -a in b's."""
    first = feature // PAIR % 2 == 0
    partner = tl.where(first, feature + PAIR, feature - PAIR)
    x = tl.load(rows + partner, mask=exists & (partner < SIZE), other=0.0)
    # In float32, because Triton's interpreter keeps bfloat16 as integers.
    wide = x.to(tl.float32)
    return tl.where(first, wide, -wide).to(x.dtype)


@triton.jit
def times(x, y):
    """x * y; Triton's interpreter would multiply the bits of bfloat16 as integers."""
    if INTERPRETED:
        return (x.to(tl.float32) * y.to(tl.float32)).to(x.dtype)
    else:
        return x * y


@triton.jit
def decode(
    Q, K, V, TAIL, PARTS, TOPS, TABLE, NEAR, KTABLE, SLOPES, TURNS, WAVES, OFFSETS, LENGTHS,
    sqz, sqh, sql, skz, skh, skl, svz, svh, svl, skt, G, GROUP, QUERIES, keys,
    TD, KD, D, scale2,
    HAS_TABLE: tl.constexpr, HAS_NEAR: tl.constexpr, HAS_KTABLE: tl.constexpr,
    HAS_LINEAR: tl.constexpr, HAS_LENGTHS: tl.constexpr, CAUSAL: tl.constexpr,
    PAIR: tl.constexpr, TAIL_SIZE: tl.constexpr, SIZE: tl.constexpr, VSIZE: tl.constexpr,
    BD: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """PARTS (lines, splits, VSIZE): a split's output; TOPS (lines, splits): its log2-sum-exp2.

    PAIR is 0 without Rotary, TAIL_SIZE 0 without Transformer-XL.
    """
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    z = tl.program_id(0).to(tl.int64) // G
    g = tl.program_id(0).to(tl.int64) % G
    row = tl.program_id(2) * BM + tl.arange(0, BM)[:, None]
    exists = row < GROUP * QUERIES
    safe = tl.minimum(row, GROUP * QUERIES - 1)
    h = g * GROUP + safe // QUERIES
    i = safe % QUERIES
    line = (z * G + g) * GROUP * QUERIES + safe
    col = tl.arange(0, BN)
    feature, value = tl.arange(0, BD)[None, :], tl.arange(0, BV)[None, :]
    K += z * skz + g * skh
    V += z * svz + g * svh
    offset = tl.load(OFFSETS + z)
    length = keys
    if HAS_LENGTHS:
        length = tl.minimum(tl.load(LENGTHS + z).to(tl.int32), keys)
    end = length
    if CAUSAL:
        end = tl.minimum(end, offset + QUERIES)
    end = tl.maximum(end, 0)
    # By the sequence's own length, not by the capacity of the cache: every program has work.
    part = tl.cdiv(tl.cdiv(end, BN), splits) * BN
    begin = split * part
    end = tl.minimum(end, begin + part)

    Q += z * sqz + h * sqh + i * sql
    q = tl.load(Q + feature, mask=exists & (feature < SIZE), other=0.0)
    if PAIR:
        q_second = load_partner(Q, feature, exists, PAIR, SIZE)
        # Rounded to the keys' type, for registers: an error like that of a rounded turned key.
        col_cos, col_sin = load_turn(TURNS, col[:, None], feature, SIZE)
        col_cos, col_sin = col_cos.to(q.dtype), col_sin.to(q.dtype)
    if TAIL_SIZE:
        wave = tl.arange(0, BT)[None, :]
        TAIL += line * TAIL_SIZE
        tail_first = tl.load(TAIL + wave, mask=exists & (wave < TAIL_SIZE), other=0.0)
        tail_second = load_partner(TAIL, wave, exists, TAIL_SIZE // 2, TAIL_SIZE)
        col_wave_cos, col_wave_sin = load_turn(WAVES, col[:, None], wave, TAIL_SIZE)
        col_wave = tl.where(wave < TAIL_SIZE // 2, col_wave_sin, col_wave_cos).to(q.dtype)
    if HAS_KTABLE:
        KTABLE += h * skt
        k_left = tl.load(KTABLE + 2 * KD * SIZE + feature, mask=feature < SIZE, other=0.0)
        k_right = tl.load(KTABLE + feature, mask=feature < SIZE, other=0.0)
        k_left, k_right = k_left.to(q.dtype), k_right.to(q.dtype)
    if HAS_LINEAR:
        slope = tl.load(SLOPES + h).to(tl.float32) * LOG2E

    acc = tl.zeros([BM, BV], tl.float32)
    total = tl.zeros([BM, 1], tl.float32)
    mx = tl.full([BM, 1], -1e30, tl.float32)  # finite: a row that sees nothing stays there
    for n0 in tl.range(begin, end, BN):
        k = load_rows(K, n0, col[:, None], skl, feature, length, SIZE)
        if PAIR:
            cos, sin = load_turn(TURNS, BN + n0 // BN, feature, SIZE)
            a, b = q.to(tl.float32), q_second.to(tl.float32)
            first = (a * cos + b * sin).to(q.dtype)
            second = (b * cos - a * sin).to(q.dtype)
            s = tl.dot(first, tl.trans(times(k, col_cos)), input_precision=PRECISION)
            s = tl.dot(second, tl.trans(times(k, col_sin)), s, input_precision=PRECISION)
        else:
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if TAIL_SIZE:
            cos, sin = load_turn(WAVES, BN + n0 // BN, wave, TAIL_SIZE)
            tail = tail_first.to(tl.float32) * cos - tail_second.to(tl.float32) * sin
            s = tl.dot(tail.to(q.dtype), tl.trans(col_wave), s, input_precision=PRECISION)
        distance = offset + i - n0 - col[None, :]
        if HAS_KTABLE:
            far = tl.dot(k_left, tl.trans(k), input_precision=PRECISION)
            s += tl.where(distance >= D, far, 0.0)
            if not CAUSAL:
                far = tl.dot(k_right, tl.trans(k), input_precision=PRECISION)
                s += tl.where(distance <= -D, far, 0.0)
        s = s * scale2
        if HAS_TABLE:
            at = tl.minimum(tl.maximum(distance, -TD), TD) + TD
            s += read_only(TABLE + h * (2 * TD + 1) + at) * LOG2E
        if HAS_NEAR:
            at = tl.minimum(tl.maximum(distance, 0 if CAUSAL else -D), D) + D
            s += read_only(NEAR + line * (2 * D + 1) + at) * LOG2E
        if HAS_LINEAR:
            s -= slope * tl.abs(distance)
        allowed = (n0 + col[None, :] < length) & (distance == distance)
        if CAUSAL:
            allowed = allowed & (distance >= 0)
        s = tl.where(allowed, s, float("-inf"))
        new = tl.maximum(mx, tl.max(s, 1, keep_dims=True))
        p = tl.exp2(s - new)
        shrink = tl.exp2(mx - new)
        total = total * shrink + tl.sum(p, 1, keep_dims=True)
        v = load_rows(V, n0, col[:, None], svl, value, length, VSIZE)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink, input_precision=PRECISION)
        mx = new
    seen = tl.where(total > 0, total, 1.0)
    at = line * splits + split
    tl.store(PARTS + at * VSIZE + value, acc / seen, mask=exists & (value < VSIZE))
    tl.store(TOPS + at, tl.where(total > 0, mx + tl.log2(seen), float("-inf")), mask=exists)


@triton.jit
def combine(
    PARTS, TOPS, OUT, LSE, splits,
    SPLITS: tl.constexpr, VSIZE: tl.constexpr, BV: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A row's output and logsumexp from those of its splits, added in the order of the splits."""
    line = tl.program_id(0).to(tl.int64)
    value = tl.arange(0, BV)[None, :]
    every = tl.arange(0, SPLITS)
    tops = tl.load(TOPS + line * splits + every, mask=every < splits, other=float("-inf"))
    best = tl.maximum(tl.max(tops, 0), -1e30)
    total = tl.sum(tl.exp2(tops - best), 0)
    acc = tl.zeros([1, BV], tl.float32)
    for first in range(0, splits, CHUNK):
        split = first + tl.arange(0, CHUNK)[:, None]
        at = line * splits + split
        top = tl.load(TOPS + at, mask=split < splits, other=float("-inf"))
        there = (split < splits) & (value < VSIZE)
        part = tl.load(PARTS + at * VSIZE + value, mask=there, other=0.0)
        acc += tl.sum(part * tl.exp2(top - best), 0, keep_dims=True)
    seen = tl.where(total > 0, total, 1.0)
    tl.store(OUT + line * VSIZE + value, (acc / seen).to(OUT.dtype.element_ty), mask=value < VSIZE)
    tl.store(LSE + line, tl.where(total > 0, best + tl.log2(seen), float("inf")))
