"""ESA's scores of cached tokens in Triton: one pass over the keys, or two for chunks of queries.

    f(m; c) = q_c · k_m
    F(m)    = max over c of (f(m; c) - max over m' of f(m'; c)), or f(m; c) of a single query

One query: each program has a tile of tokens. Floor: the bytes of the keys over the bandwidth.

A chunk: `row_maxima` keeps a tile of queries and goes through a slice of the range, `compare` keeps
a tile of tokens and goes through the queries. Both compute a dot product from the same tiles by the
same instructions, so that a query's best token has exactly 0. Floor: two passes of 2 * C * N * E
FLOPs over the rate of the tensor cores; nothing of the size C * N is written. On the way, nothing
but a maximum or a difference may be done to each product, as 128 multiplications by a tensor core
take no longer than four operations outside: where there is no token or query, the tile has the last
one again, and what has no value is NaN, which maxima leave out.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.shared.dot import dot, larger

BYTES = 2**14  # of keys that a program reads at a time for one query
PROGRAMS = 512  # of `row_maxima`: a few for every processor, as they take turns


@triton.jit
def bounds(b, start, end, number, tokens, chunk):
    """The range of tokens that a sequence scores, and the number of its queries."""
    first = tl.full((), 0, tl.int32)
    last = first + tokens
    queries = first + chunk
    if start is not None:
        first = tl.maximum(tl.load(start + b), 0).to(tl.int32)
    if end is not None:
        last = tl.minimum(tl.load(end + b), tokens).to(tl.int32)
    if number is not None:
        queries = tl.minimum(tl.load(number + b), chunk).to(tl.int32)
    return first, last, queries


@triton.jit
def place(n, b, table, table_stride, page_stride, blocks, SIZE: tl.constexpr):
    """Of tokens of a sequence: their indices in both dimensions of the cache; which are no holes.

    Holes are at some block's place, which is not to be read.
    """
    if table is None:
        return b.to(tl.int64), n.to(tl.int64), n >= 0
    at = b.to(tl.int64) * table_stride + (n // SIZE).to(tl.int64) * page_stride
    block = tl.load(table + at).to(tl.int64)
    return block, (n % SIZE).to(tl.int64), (block >= 0) & (block < blocks)


@triton.jit
def part(row, stride, group_stride, i, there, D: tl.constexpr, E: tl.constexpr):
    """The i-th part, of E numbers, of vectors that begin at `row`, which reads those `there`."""
    PARTS: tl.constexpr = (D + E - 1) // E
    e = i % PARTS * E + tl.arange(0, E)
    at = row[:, None] + (i // PARTS).to(tl.int64) * group_stride + e[None, :] * stride
    if D % E == 0 and there is None:
        return tl.load(at)
    real = e[None, :] < D
    if there is not None:
        real = real & there[:, None]
    return tl.load(at, mask=real, other=0.0)
