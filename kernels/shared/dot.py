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
