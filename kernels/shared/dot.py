"""What Triton's interpreter does not do as a device does: products of tiles, maxima beside NaN."""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b, total):
    """``a @ b + total`` in float32 by tensor cores, with `a` in the dtype of `b`.

    Eight bits are exact in sixteen. The interpreter takes bfloat16 for integers: float32 instead.
    """
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a.to(b.dtype), b, total, input_precision="ieee")


@triton.jit
def larger(a, b):
    """The larger of two, `b` where `a` is NaN: one instruction. The interpreter's gives NaN."""
    if INTERPRETED:
        return tl.where(a > b, a, b)
    return tl.maximum(a, b)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 as another float, to nearest, ties to even. The interpreter would cut bits off."""
    if INTERPRETED:
        BFLOAT16: tl.constexpr = dtype == tl.bfloat16
        if BFLOAT16 or dtype == tl.float8e4nv:
            CUT: tl.constexpr = 16 if BFLOAT16 else 20
            bits = x.to(tl.int32, bitcast=True)
            bits = (bits + (2 ** (CUT - 1) - 1) + (bits >> CUT & 1)) & -(2**CUT)
            near = bits.to(tl.float32, bitcast=True)
            if not BFLOAT16:  # multiples of 2**-9 below 2**-6
                near = tl.where(tl.abs(x) < 0.015625, x + 24576.0 - 24576.0, near)
            x = tl.where(tl.abs(x) < float("inf"), near, x)
    return x.to(dtype)


def tensor_cores() -> bool:
    """Whether Triton has tensor cores of the current device for `dot`: not those before sm_80."""
    if INTERPRETED.value:
        return True
    target = triton.runtime.driver.active.get_current_target()
    return target.backend != "cuda" or target.arch >= 80
