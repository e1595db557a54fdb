"""One tile of tokens: where its rows are in the cache, and a step of the online softmax over it.

Keys and queries come in two halves of the head's dimension, ``[tokens, D / 2]`` each, as rotation
pairs element i with i + D / 2: the dot product is that of the first halves plus that of the second.
"""

import triton
import triton.language as tl
from triselect.kernels.shared.dot import dot, rounded


@triton.jit
def locate(
    token,
    real,
    b,
    block_table,
    table_stride,
    page_stride,
    blocks,
    SIZE: tl.constexpr,
):
    """Block and row in it of the tokens of sequence b, and which of the `real` ones exist."""
    row = token.to(tl.int64)
    if block_table is None:
        block = b
    else:
        at = block_table + b * table_stride + (row // SIZE) * page_stride
        block = tl.load(at, mask=real, other=-1).to(tl.int64)
        real = real & (block >= 0) & (block < blocks)
        row = row % SIZE
    return block, row, real


@triton.jit
def load_rows(x, offset, real, LENGTH: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of `LENGTH` in a tile of `WIDTH`: zeros where nothing is, not what may be there."""
    i = tl.arange(0, WIDTH)[None, :]
    return tl.load(x + offset[:, None] + i, mask=real[:, None] & (i < LENGTH), other=0.0)


@triton.jit
def load_halves(x, offset, real, D: tl.constexpr, HALF: tl.constexpr):
    SPLIT: tl.constexpr = (D + 1) // 2
    first = load_rows(x, offset, real, SPLIT, HALF)
    return first, load_rows(x + SPLIT, offset, real, D - SPLIT, HALF)


@triton.jit
def rotate(k1, k2, c, s):
    """Rotate-half, in float32."""
    x, y = k1.to(tl.float32), k2.to(tl.float32)
    return rounded(x * c - y * s, k1.dtype), rounded(y * c + x * s, k2.dtype)


@triton.jit
def online_softmax(top, total, q1, q2, k1, k2, seen, scale):
    """Weights of a tile's tokens, of which each row counts those `seen`; the largest logit and the
    sum of weights so far; what earlier weights shrink by.

    Logits are in powers of two: `scale` includes log2(e).
    """
    logits = tl.zeros((q1.shape[0], k1.shape[0]), tl.float32)
    logits = dot(q2, tl.trans(k2), dot(q1, tl.trans(k1), logits)) * scale
    logits = tl.where(seen, logits, float("-inf"))
    highest = tl.maximum(top, tl.max(logits, 1))
    base = tl.where(highest == float("-inf"), 0.0, highest)  # rows that saw nothing yet
    weight = tl.exp2(logits - base[:, None])
    shrink = tl.exp2(top - base)
    return weight, highest, total * shrink + tl.sum(weight, 1), shrink


@triton.jit
def without_wild(total, v, seen):
    """`v` without what is not finite, and `total`, NaN in the rows that see any of that.

    A product of tiles would take it to all rows: a weight of zero does not undo NaN or infinity.
    """
    x = v.to(tl.float32)
    finite = tl.abs(x) < float("inf")
    wild = tl.min(finite.to(tl.int32), 1) == 0
    sees = tl.max((seen & wild[None, :]).to(tl.int32), 1) > 0
    return tl.where(sees, float("nan"), total), tl.where(finite, x, 0.0).to(v.dtype)
