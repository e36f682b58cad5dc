"""What all kernels share: a sequence's span, a tile's position terms, its mask, its dropout.

A tile of BM queries by BN keys is *left* when every distance i - j in it is at least D, *right*
when every one is at most -D, otherwise *near*. A clipped scheme is constant along a row or a
column on a far side, so only near tiles look anything up, under an ``if`` without ``else``: with
one, Triton 3.6 fails to pipeline the backward kernels. Scores here are in units of q.k: the
host divides biases and slopes by scale, and ``exp2(s * scale2 + far * scale2)`` follows.

The functions broadcast: forward has queries down (row (BM, 1), col (1, BN)), the kernel of dK and
dV has keys down (row (1, BM), col (BN, 1)), and both call the same code.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def read_only(pointer):
    """A float32 look-up that the pipeliner leaves alone.

    It turns a tl.load into an asynchronous copy of the whole bias tile to shared memory, which
    halves the occupancy.
    """
    if INTERPRETED:
        return tl.load(pointer)
    else:
        return tl.inline_asm_elementwise(
            "ld.global.nc.f32 $0, [$1];",
            "=f,l",
            [pointer.to(tl.int64, bitcast=True)],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def read_only_as_float(pointer):
    """:func:`read_only` of bfloat16 and float16, too. Half the instructions of a masked tl.load."""
    if INTERPRETED:
        return tl.load(pointer).to(tl.float32)
    elif pointer.dtype.element_ty == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "{ .reg .b16 %h, %z; mov.b16 %z, 0; ld.global.nc.b16 %h, [$1]; mov.b32 $0, {%z, %h}; }",
            "=f,l", [pointer.to(tl.int64, bitcast=True)], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    elif pointer.dtype.element_ty == tl.float16:
        return tl.inline_asm_elementwise(
            "{ .reg .b16 %h; ld.global.nc.b16 %h, [$1]; cvt.f32.f16 $0, %h; }",
            "=f,l", [pointer.to(tl.int64, bitcast=True)], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return read_only(pointer)


@triton.jit
def span_of(SPANS, z, q_rows, k_rows, offset, HAS_SPANS: tl.constexpr):
    """First query, queries, first key, keys and the position of the first query of sequence z."""
    if HAS_SPANS:
        at = SPANS + z * 5
        return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4)
    else:
        return q_rows * 0, q_rows, k_rows * 0, k_rows, offset


@triton.jit
def load_rows(pointer, first, row, stride, feature, length, SIZE: tl.constexpr):
    """Rows ``first + row`` of a matrix as a (rows, features) block, zeros outside it."""
    inside = (first + row >= 0) & (first + row < length) & (feature < SIZE)
    base = pointer + tl.cast(first, tl.int64) * stride
    return tl.load(base + row * stride + feature, mask=inside, other=0.0)


@triton.jit
def load_tile(DESCRIPTOR, z, h, first, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows from ``first`` on by the chip's copy engine: (ROWS, WIDTH), zeros outside the tensor.

    Rows beyond a sequence's own end are those of its neighbour or padding: finite, and of weight 0.
    """
    at = [tl.cast(z, tl.int32), tl.cast(h, tl.int32), tl.cast(first, tl.int32), 0]
    return DESCRIPTOR.load(at).reshape([ROWS, WIDTH])


@triton.jit
def load_waves(DESCRIPTOR, first, TAIL: tl.constexpr):
    """Transformer-XL's sinusoids of a tile's keys, from ``first`` on, the same for all heads; 0 if TAIL is 0."""
    if TAIL:
        return DESCRIPTOR.load([tl.cast(first, tl.int32), 0])
    else:
        return 0


@triton.jit
def sides(m0, n0, offset, k_len, D, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Whether a tile is left, and whether near; the tile with the end of the keys is near."""
    rel0 = m0 + offset - n0
    left = rel0 - BN + 1 >= D
    far = left
    if not CAUSAL:
        far = left | (rel0 + BM - 1 <= -D)
    return left, (far == 0) | (n0 + BN > k_len)


@triton.jit
def keys_to_visit(
    REACH, at, m0, offset, k_len, CAUSAL: tl.constexpr, HAS_REACH: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """First key, at a tile's begin, and end of what a block of queries visits.

    REACH[at] is how far from its nearest key a row's weights count (``lowering.reach``).
    """
    first = k_len * 0
    end = k_len
    if CAUSAL:
        end = tl.minimum(k_len, tl.maximum(m0 + BM + offset, 0))
    if HAS_REACH:
        reach = tl.load(REACH + at)
        nearest = tl.minimum(tl.maximum(m0 + offset, 0), k_len - 1)
        first = tl.maximum(nearest - reach, 0) // BN * BN
        nearest = tl.minimum(tl.maximum(m0 + offset + BM - 1, 0), k_len - 1)
        end = tl.minimum(end, nearest + reach + 1)
    return first, end


@triton.jit
def queries_to_visit(
    REACH, at, n0, offset, q_len, k_len, CAUSAL: tl.constexpr, HAS_REACH: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """First query, at a tile's begin, and end of those that visit a block of keys."""
    first = q_len * 0
    end = q_len
    if CAUSAL:
        first = tl.maximum(n0 - offset, 0)
    if HAS_REACH:
        # Queries beyond either end of the keys have that end for their nearest key.
        reach = tl.load(REACH + at)
        low, high = n0 - reach, n0 + BN - 1 + reach
        first = tl.maximum(first, tl.where(low > 0, low - offset, 0))
        within = tl.minimum(q_len, tl.maximum(high - offset + 1, 0))
        end = tl.where(high >= k_len - 1, q_len, within)
    return first // BM * BM, end


@triton.jit
def constants(FAR, at, rows, inside, HAS: tl.constexpr):
    """A product's values on the left and on the right side; FAR holds them right first."""
    if HAS:
        return (
            tl.load(FAR + at + rows, mask=inside, other=0.0),
            tl.load(FAR + at, mask=inside, other=0.0),
        )
    else:
        zero = tl.zeros(inside.shape, tl.float32)
        return zero, zero


@triton.jit
def row_constant(far, slope, row, rel0, left, near, HAS_LINEAR: tl.constexpr):
    """What a far tile adds to all of a row; ``far`` is the part of table and query product."""
    far = tl.where(near, 0.0, far)
    if HAS_LINEAR:
        toward = tl.where(near, 0.0, tl.where(left, slope, -slope))
        far -= toward * (rel0 + row)
    return far


@triton.jit
def query_constants(
    QFAR, TABLE, at, rows, inside, PAD, HAS_TABLE: tl.constexpr, HAS_QR: tl.constexpr
):
    """What a row's far tiles add on the left and on the right: of its query product and the table."""
    far_left, far_right = constants(QFAR, at, rows, inside, HAS_QR)
    if HAS_TABLE:
        far_left += tl.load(TABLE)
        far_right += tl.load(TABLE + 2 * PAD)
    return far_left, far_right


@triton.jit
def add_positions(
    s, TABLE, QR, KR, slope, row, col, m0, n0, offset, q_len, k_len, D, WIDTH, PAD, left, near,
    HAS_TABLE: tl.constexpr, HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_LINEAR: tl.constexpr,
    CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, OUTSIDE: tl.constexpr = False,
):  # fmt: skip
    """The masked scores without :func:`row_constant`, and without a key product's constants.

    OUTSIDE: a tile may begin before the first key, or behind the last query or key.
    """
    rel0 = m0 + offset - n0
    if HAS_LINEAR:
        # On one side |i - j| = +-(rel0 + row - col): a part along the row and one along the
        # column, both small beside the distance itself, so nothing cancels.
        s += tl.where(near, 0.0, tl.where(left, slope, -slope)) * col
    if near:
        if HAS_TABLE:
            # Over j - i. One scalar clamp keeps the whole tile inside the padding.
            base = tl.minimum(tl.maximum(-rel0, BM - PAD), PAD - BN) + PAD
            # What differs between a thread's scores comes last, and as a sum: LLVM makes the constant of a
            # sum part of the load, but keeps an address of its own for each `lane | constant`. In col - row
            # it would find what no loop changes, and hold it in registers for the whole tile.
            if row.shape[1] == 1:
                s += read_only((TABLE + base + BN - row) + (col - BN))
            else:
                s += read_only((TABLE + base + col) - row)
        if HAS_QR or HAS_KR:
            # The clipped distance plus D, again without col - row. Rows and columns that do not exist, which
            # are masked, look up what the last one does.
            clipped = tl.minimum(tl.maximum(col, rel0 + row - D), rel0 + row + D)
            entry = rel0 + row + D
        # From a row that exists, so that the way from there is short enough for 32 bits.
        m1, n1, line, key_line = m0, n0, row, col
        if OUTSIDE:
            m1 = tl.minimum(m0, q_len - 1)
            n1 = tl.minimum(tl.maximum(n0, 0), k_len - 1)
            key_line = tl.maximum(col + (n0 - n1), 0)
        if HAS_QR:
            line = tl.minimum(line, q_len - 1 - m1) * WIDTH
            at = QR + tl.cast(m1, tl.int64) * WIDTH + (line + entry)
            s += read_only_as_float(at - clipped)
        if HAS_KR:
            key_line = tl.minimum(key_line, k_len - 1 - n1) * WIDTH
            at = KR + tl.cast(n1, tl.int64) * WIDTH + key_line
            s += read_only_as_float(at + (entry - clipped))
        if HAS_LINEAR:
            s -= slope * tl.abs((rel0 + row).to(tl.float32) - col.to(tl.float32))
        # Compared with a row's end and not as distances, of which the compiler would hold a whole
        # tile in registers through the loop.
        if CAUSAL:
            end = tl.minimum(k_len, m0 + offset + row + 1)
            s = tl.where(n0 + col < end, s, float("-inf"))
        else:
            inside = n0 + col < k_len
            s = tl.where(inside, s, float("-inf"))
    return s


@triton.jit
def scores(
    q, k, q2, waves, TABLE, QR, KR, KFAR, far_left, far_right, slope, row, col, m0, n0, offset,
    at_key, k_rows, q_len, k_len, D, WIDTH, PAD, TAIL: tl.constexpr, HAS_TABLE: tl.constexpr,
    HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_LINEAR: tl.constexpr, CAUSAL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, OUTSIDE: tl.constexpr = False,
):  # fmt: skip
    """(s, far, left, near) of a tile with queries down: its masked scores are s + far.

    ``at_key`` is where the tile's keys begin in KFAR. q2 and waves are read if TAIL is not 0.
    """
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if TAIL:
        s = tl.dot(q2, tl.trans(waves), s, input_precision=PRECISION)
    left, near = sides(m0, n0, offset, k_len, D, CAUSAL, BM, BN)
    if HAS_KR:
        at = at_key + col + tl.where(left, k_rows, 0)
        exists = (n0 + col >= 0) & (n0 + col < k_len)
        s += tl.where(near, 0.0, tl.load(KFAR + at, mask=exists, other=0.0))
    s = add_positions(
        s, TABLE, QR, KR, slope, row, col, m0, n0, offset, q_len, k_len, D, WIDTH, PAD, left, near,
        HAS_TABLE, HAS_QR, HAS_KR, HAS_LINEAR, CAUSAL, BM, BN, OUTSIDE,
    )  # fmt: skip
    far = tl.where(left, far_left, far_right)
    far = row_constant(far, slope, row, m0 + offset - n0, left, near, HAS_LINEAR)
    return s, far, left, near


@triton.jit
def kept(x, seed, threshold, row, col, m0, n0, sequence_head, inverse_keep):
    """x / (1 - p) where the counter-based generator keeps a score, else 0 (see philox.py)."""
    zero = row * 0 + col * 0
    word, _, _, _ = tl.philox(
        seed, zero + (n0 + col), zero + (m0 + row), zero + tl.cast(sequence_head, tl.int32), zero
    )
    threshold = tl.cast(threshold, tl.int64)
    return tl.where(word.to(tl.int64) >= threshold, x * inverse_keep, 0.0)
