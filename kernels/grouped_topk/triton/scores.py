"""Scores from logits in float32: what softmax, sigmoid and sqrt(softplus) are made of."""

import triton
import triton.language as tl

EPSILON = tl.constexpr(1e-20)
LOG2_E = tl.constexpr(1.4426950408889634)
LOG2_E_REST = tl.constexpr(1.925963033500e-08)  # LOG2_E - float32(LOG2_E)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def nan_last(x):
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def exp(x):
    """exp(x) of x <= 0, right to the last place or two of float32; NaN gives 0."""
    x = tl.where(x > -104.0, x, -104.0)
    t = x * LOG2_E
    rest = tl.fma(x, LOG2_E_REST, tl.fma(x, LOG2_E, -t))  # what rounding t lost
    e = tl.exp2(t)
    return tl.fma(e, rest * LN_2, e)


@triton.jit
def mass(x, top):
    """What a logit adds to the sum of its softmax."""
    return tl.where(x == top, 1.0, exp(x - top))  # inf - inf would be NaN


@triton.jit
def score(x, top, total, SCORING: tl.constexpr):
    if SCORING == "softmax":
        return mass(x, top) / total
    elif SCORING == "sigmoid":
        e = exp(-tl.abs(x))
        q = tl.rsqrt(1.0 + e)
        q = q * q
        q = tl.fma(tl.fma(-1.0 - e, q, 1.0), q, q)  # Newton's step to 1 / (1 + e)
        return tl.where(x >= 0, 1.0, e) * q
    elif SCORING == "sqrt_softplus":
        e = exp(-tl.abs(x))
        z = e / (2.0 + e)  # ln(1 + e) = 2 artanh(z) = 2 (z + z^3 / 3 + z^5 / 5 + ...), z <= 1/3
        series = 1.0 / 15
        for i in tl.static_range(7):
            series = tl.fma(series, z * z, 1.0 / (13 - 2 * i))
        return tl.sqrt(tl.fma(2.0 * z, series, tl.where(x > 0, x, 0.0)))
    else:
        return x


@triton.jit
def load(pointer, ids, stride, mask):
    return tl.load(pointer + ids.to(tl.int64) * stride, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def sum_in_pairs(x):
    """Sum ``(T, 1)`` of each row of a tile ``(T, 2**n)``: the same bits whatever its layout."""
    T: tl.constexpr = x.shape[0]
    for _ in tl.static_range(20):
        if x.shape[1] > 1:
            x = tl.sum(x.reshape(T, x.shape[1] // 2, 2), 2)
    return x
