"""Rotary positions: every row's pairs of features turned by its angles, in one pass over memory."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["start", "L", "programs", "ystart", "YL"])
def turn(
    X, OUT, POSITIONS, spz, start, sxz, sxh, sxl, soz, soh, sol, H, L, programs,
    Y, YOUT, YPOSITIONS, sypz, ystart, syz, syh, syl, soyz, soyh, soyl, YH, YL, SIZE,
    HAS_Y: tl.constexpr, HAS_POSITIONS: tl.constexpr, RATE: tl.constexpr, COS_SIGN: tl.constexpr,
    SIN_SIGN: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_REST: tl.constexpr,
    HEADS: tl.constexpr, BR: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """BR rows of up to HEADS heads of x (B, H, L, SIZE), or of y behind them, a program."""
    program = tl.program_id(0)
    of_y = program - programs
    if of_y < 0:
        turn_rows(
            X, OUT, POSITIONS, spz, start, sxz, sxh, sxl, soz, soh, sol, H, L, program, SIZE,
            HAS_POSITIONS, RATE, COS_SIGN, SIN_SIGN, PAIRS, INTERLEAVED, HAS_REST, HEADS, BR, BF, BD,
        )  # fmt: skip
    elif HAS_Y:
        turn_rows(
            Y, YOUT, YPOSITIONS, sypz, ystart, syz, syh, syl, soyz, soyh, soyl, YH, YL, of_y, SIZE,
            HAS_POSITIONS, RATE, COS_SIGN, SIN_SIGN, PAIRS, INTERLEAVED, HAS_REST, HEADS, BR, BF, BD,
        )  # fmt: skip


@triton.jit
def turn_rows(
    X, OUT, POSITIONS, spz, start, sxz, sxh, sxl, soz, soh, sol, H, L, program, SIZE,
    HAS_POSITIONS: tl.constexpr, RATE: tl.constexpr, COS_SIGN: tl.constexpr,
    SIN_SIGN: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_REST: tl.constexpr,
    HEADS: tl.constexpr, BR: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Pair f turns by position * 2^(f * RATE), the same in all heads."""
    blocks, groups = tl.cdiv(L, BR), tl.cdiv(H, HEADS)
    at = (program % blocks).to(tl.int64) * BR + tl.arange(0, BR)[:, None]
    there = at < L
    first_head = program // blocks % groups * HEADS
    z = (program // blocks // groups).to(tl.int64)
    position = start + at
    if HAS_POSITIONS:
        position = tl.load(POSITIONS + z * spz + at, mask=there, other=0)
    pair = tl.arange(0, BF)[None, :]
    # Whole turns go in float64: of float32 nothing would be left at great distances.
    turns = position.to(tl.float64) * (tl.exp2(pair.to(tl.float64) * RATE) * 0.15915494309189535)
    angle = ((turns - tl.floor(turns + 0.5)) * 6.283185307179586).to(tl.float32)
    cos, sin = tl.cos(angle) * COS_SIGN, tl.sin(angle) * SIN_SIGN
    mask = there & (pair < PAIRS)
    if INTERLEAVED:
        first, second = 2 * pair, 2 * pair + 1
    else:
        first, second = pair, pair + PAIRS
    for head in range(first_head, tl.minimum(first_head + HEADS, H)):
        h = tl.cast(head, tl.int64)
        x = X + z * sxz + h * sxh + at * sxl
        out = OUT + z * soz + h * soh + at * sol
        a = tl.load(x + first, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x + second, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + first, (a * cos - b * sin).to(OUT.dtype.element_ty), mask=mask)
        tl.store(out + second, (a * sin + b * cos).to(OUT.dtype.element_ty), mask=mask)
        if HAS_REST:  # features that do not turn
            feature = tl.arange(0, BD)[None, :]
            rest = there & (feature >= 2 * PAIRS) & (feature < SIZE)
            kept = tl.load(x + feature, mask=rest).to(OUT.dtype.element_ty)
            tl.store(out + feature, kept, mask=rest)
