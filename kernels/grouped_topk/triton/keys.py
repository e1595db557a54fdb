"""Keys: float32 as int32 in the same order, so that one comparison orders and packs.

A key from a 16-bit logit holds its expert in the bits that such a logit leaves free.
"""

import triton
import triton.language as tl

PADDING = tl.constexpr(-(2**31))  # below the key of every expert, also that of -inf
INDEX = tl.constexpr(2**13 - 1)  # the low bits that float32 does not use for 16-bit floats


@triton.jit
def pack(value, ids, real, PACKED: tl.constexpr):
    """Keys of values, -0 as +0."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    if PACKED:
        key = key & ~INDEX | (INDEX - ids)
    return tl.where(real, key, PADDING)


@triton.jit
def unpack(key, PACKED: tl.constexpr):
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    if PACKED:
        bits = bits & ~INDEX
    return bits.to(tl.float32, bitcast=True)
