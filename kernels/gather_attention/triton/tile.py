"""One tile of tokens: where its rows are in the cache, and a step of the online softmax over it.

Keys and queries come in two halves of the head's dimension, ``[tokens, D / 2]`` each, as rotation
pairs element i with i + D / 2: the dot product is that of the first halves plus that of the second.
"""

import triton
import triton.language as tl


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
    if block_table is None:
        block = tl.zeros_like(token) + b
        row = token
    else:
        at = block_table + b * table_stride + (token // SIZE) * page_stride
        block = tl.load(at, mask=real, other=-1).to(tl.int64)
        real = real & (block >= 0) & (block < blocks)
        row = token % SIZE
    return block, row, real


@triton.jit
def load_rows(x, offset, real, LENGTH: tl.constexpr, WIDTH: tl.constexpr, DOT: tl.constexpr):
    """Rows of `LENGTH` in a tile of `WIDTH`: zeros where nothing is, not what may be there."""
    i = tl.arange(0, WIDTH)[None, :]
    mask = real[:, None] & (i < LENGTH)
    return tl.load(x + offset[:, None] + i, mask=mask, other=0.0).to(DOT)


@triton.jit
def load_halves(x, offset, real, D: tl.constexpr, HALF: tl.constexpr, DOT: tl.constexpr):
    SPLIT: tl.constexpr = (D + 1) // 2
    first = load_rows(x, offset, real, SPLIT, HALF, DOT)
    second = load_rows(x + SPLIT, offset, real, D - SPLIT, HALF, DOT)
    return first, second


@triton.jit
def rotate(k1, k2, c, s):
    """Rotate-half, in float32."""
    x, y = k1.to(tl.float32), k2.to(tl.float32)
    return (x * c - y * s).to(k1.dtype), (y * c + x * s).to(k2.dtype)


@triton.jit
def online_softmax(top, total, q1, q2, k1, k2, seen, scale):
    """Weights of a tile's tokens, of which each row counts those `seen`; the largest logit and the
    sum of weights so far; what earlier weights shrink by.

    Logits are in powers of two: `scale` includes log2(e).
    """
    logits = tl.dot(q1, tl.trans(k1), input_precision="ieee")
    logits = tl.dot(q2, tl.trans(k2), logits, input_precision="ieee") * scale
    logits = tl.where(seen, logits, float("-inf"))
    highest = tl.maximum(top, tl.max(logits, 1))
    base = tl.where(highest == float("-inf"), 0.0, highest)  # rows that saw nothing yet
    weight = tl.exp2(logits - base[:, None])
    shrink = tl.exp2(top - base)
    return weight, highest, total * shrink + tl.sum(weight, 1), shrink


@triton.jit
def add_values(acc, weight, shrink, v):
    return tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")


@triton.jit
def add_values_seen(acc, weight, shrink, v, seen):
    """The same where rows see different tokens: a weight of zero does not undo NaN or infinity."""
    x = v.to(tl.float32)
    finite = tl.abs(x) < float("inf")
    acc = add_values(acc, weight, shrink, tl.where(finite, v, 0.0).to(v.dtype))
    if tl.min(finite.to(tl.int32)) == 0:
        column = tl.arange(0, v.shape[0])
        for j in range(v.shape[0]):
            here = column == j
            w = tl.sum(tl.where(here[None, :] & seen, weight, 0.0), 1)
            sees = tl.max((here[None, :] & seen).to(tl.int32), 1) > 0
            row = tl.sum(tl.where(here[:, None], x, 0.0), 0)
            wild = (tl.abs(row) < float("inf")) == 0
            acc = tl.where(sees[:, None] & wild[None, :], acc + w[:, None] * row[None, :], acc)
    return acc
