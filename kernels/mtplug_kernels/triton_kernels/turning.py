"""Rotary positions: every row's pairs of features turned by its angles, in one pass over memory."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["L", "rows"])
def turn(
    X, OUT, COS, SIN, sxz, sxh, sxl, soz, soh, sol, scz, H, L, rows, SIZE,
    PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_REST: tl.constexpr,
    BR: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """BR rows of (B, H, L, SIZE) a program. COS and SIN are (B or 1, L, PAIRS), scz 0 for 1."""
    line = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)[:, None]
    there = line < rows
    at = line % L
    h, z = line // L % H, line // L // H
    x = X + z * sxz + h * sxh + at * sxl
    out = OUT + z * soz + h * soh + at * sol
    pair = tl.arange(0, BF)[None, :]
    mask = there & (pair < PAIRS)
    if INTERLEAVED:
        first, second = 2 * pair, 2 * pair + 1
    else:
        first, second = pair, pair + PAIRS
    angle = z * scz + at * PAIRS + pair
    cos = tl.load(COS + angle, mask=mask, other=0.0)
    sin = tl.load(SIN + angle, mask=mask, other=0.0)
    a = tl.load(x + first, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x + second, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + first, (a * cos - b * sin).to(OUT.dtype.element_ty), mask=mask)
    tl.store(out + second, (a * sin + b * cos).to(OUT.dtype.element_ty), mask=mask)
    if HAS_REST:  # features that do not turn
        feature = tl.arange(0, BD)[None, :]
        rest = there & (feature >= 2 * PAIRS) & (feature < SIZE)
        tl.store(out + feature, tl.load(x + feature, mask=rest).to(OUT.dtype.element_ty), mask=rest)
