"""ESA's scores of cached tokens in Triton: one pass over the keys, or two for chunks of queries.

    f(m; c) = q_c · k_m
    F(m)    = max over c of (f(m; c) - max over m' of f(m'; c)), or f(m; c) of a single query

One query: every program has a tile of tokens. Floor: the bytes of the keys over the bandwidth.

A chunk: `row_maxima` keeps a tile of queries and goes through a slice of the range, `compare` keeps
a tile of tokens and goes through the queries. Both make their products of the same tiles, so that
they are the same to the last bit, and a query's best token has exactly 0. Floor: two passes of
2 * C * N * E FLOPs over the rate of the tensor cores; nothing of the size C * N is ever written.
Tensor cores make a product of 128 numbers while the rest of a processor does four operations, so
one or two must do. Hence no masks: where there is no token or query, a tile has the last one again,
which changes no maximum; and NaN stays, as maxima leave it out.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.shared.dot import dot, larger, tensor_cores

BYTES = 2**14  # of keys that a program reads at a time for one query
PROGRAMS = 512  # of `row_maxima`, about: a few for each processor


@triton.jit
def within(x, at, limit):
    """The number at `at`, no less than 0 and no more than `limit`."""
    return tl.minimum(tl.maximum(tl.load(x + at), 0), limit).to(tl.int32)


@triton.jit
def bounds(b, start, end, number, tokens, chunk):
    """The range of tokens that a sequence scores, and how many queries it has."""
    first = tl.full((), 0, tl.int32)
    last = first + tokens
    queries = first + chunk
    if start is not None:
        first = within(start, b, tokens)
    if end is not None:
        last = within(end, b, tokens)
    if number is not None:
        queries = within(number, b, chunk)
    return first, last, queries


@triton.jit
def place(n, there, b, table, table_strides, blocks, SIZE: tl.constexpr):
    """Where tokens of a sequence are, in both dimensions of the cache, and which of them exist."""
    major = b
    minor = n.to(tl.int64)
    if table is not None:
        at = b * table_strides[0] + (n // SIZE).to(tl.int64) * table_strides[1]
        major = tl.load(table + at, mask=there, other=-1).to(tl.int64)
        minor = (n % SIZE).to(tl.int64)
        there = (major >= 0) & (major < blocks)
    return major, minor, there


@triton.jit
def piece(rows, there, i, group_stride, stride, D: tl.constexpr, E: tl.constexpr):
    """The i-th piece, of E numbers, of vectors at `rows`; 0 behind their end and, unless None,
    where they are not `there`.
    """
    PIECES: tl.constexpr = (D + E - 1) // E
    e = i % PIECES * E + tl.arange(0, E)
    at = rows[:, None] + tl.cast(i // PIECES, tl.int64) * group_stride + e[None, :] * stride
    mask = (e < D)[None, :]
    if there is not None:
        mask = mask & there[:, None]
    return tl.load(at) if there is None and D % E == 0 else tl.load(at, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["tokens", "blocks", "tiles"])
def score(
    q,
    k,
    k_scale,
    start,
    end,
    number,
    table,
    scores,
    tokens,
    blocks,
    tiles,
    q_strides,
    k_strides,
    scale_strides,
    table_strides,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    STEPS: tl.constexpr,
    N: tl.constexpr,
):
    """Scores of a tile of tokens for one query: its heads of a group are added up on the way."""
    PIECES: tl.constexpr = (D + E - 1) // E
    b = (tl.program_id(0) // tiles).to(tl.int64)
    n = tl.program_id(0) % tiles * N + tl.arange(0, N)
    first, last, queries = bounds(b, start, end, number, tokens, 1)
    there = (n >= first) & (n < last) & (queries > 0)
    major, minor, there = place(n, there, b, table, table_strides, blocks, SIZE)
    rows = k + major * k_strides[0] + minor * k_strides[1]
    total = tl.zeros((N, E), tl.float32)
    for i in range(STEPS):
        keys = piece(rows, there, i, k_strides[2], k_strides[3], D, E)
        e = i % PIECES * E + tl.arange(0, E)
        heads = q + b * q_strides[0] + tl.cast(i // PIECES, tl.int64) * HEADS * q_strides[2]
        query = tl.zeros((E,), tl.float32)
        for h in tl.static_range(HEADS):
            at = heads + h * q_strides[2] + e * q_strides[3]
            query += tl.load(at, mask=e < D, other=0).to(tl.float32)
        total += keys.to(tl.float32) * query[None, :]
    f = tl.sum(total, 1)
    if k_scale is not None:
        at = major * scale_strides[0] + minor * scale_strides[1]
        f *= tl.load(k_scale + at, mask=there, other=0.0)
    f = tl.where(there & (f == f), f, float("-inf"))
    tl.store(scores + b * tokens + n, f, mask=n < tokens)


@triton.jit
def products(
    keys,
    queries,
    k_rows,
    there,
    scale,
    q_rows,
    k_strides,
    q_strides,
    D: tl.constexpr,
    E: tl.constexpr,
    STEPS: tl.constexpr,
):
    """f of a tile of tokens and a tile of queries; of both it loads what is None."""
    total = tl.zeros((k_rows.shape[0], q_rows.shape[0]), tl.float32)
    if STEPS == 1:
        if keys is None:
            keys = piece(k_rows, there, 0, k_strides[2], k_strides[3], D, E)
        if queries is None:
            queries = piece(q_rows, None, 0, q_strides[2], q_strides[3], D, E)
        total = dot(keys, tl.trans(queries), total)
    else:
        for i in range(STEPS):
            some = piece(k_rows, there, i, k_strides[2], k_strides[3], D, E)
            of = piece(q_rows, None, i, q_strides[2], q_strides[3], D, E)
            total = dot(some, tl.trans(of), total)
    if scale is not None:
        total *= scale[:, None]
    return total


@triton.jit(do_not_specialize=["tokens", "blocks", "chunk", "slices", "tiles"])
def row_maxima(
    q,
    k,
    k_scale,
    start,
    end,
    number,
    table,
    maxima,
    tokens,
    blocks,
    chunk,
    slices,
    tiles,
    q_strides,
    k_strides,
    scale_strides,
    table_strides,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    STEPS: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
):
    """The largest f of each query in each slice of the range, ``(B, slices, chunk)``."""
    tile = tl.program_id(0) % tiles
    mine = tl.program_id(0) // tiles
    b = (mine // slices).to(tl.int64)
    first, last, queries = bounds(b, start, end, number, tokens, chunk)
    each = tl.cdiv(tl.cdiv(last - first, slices), N) * N
    begin = first + mine % slices * each
    stop = tl.minimum(begin + each, last)
    if (queries < 2) | (tile * C >= queries):  # no one asks for them
        stop = begin

    c = tile * C + tl.arange(0, C)
    real = tl.maximum(tl.minimum(c, queries - 1), 0).to(tl.int64)
    q_rows = q + b * q_strides[0] + real * q_strides[1]
    held = None
    if STEPS == 1:
        held = piece(q_rows, None, 0, q_strides[2], q_strides[3], D, E)
    best = tl.full((N, C), float("-inf"), tl.float32)
    for at in range(begin, stop, N):
        n = tl.minimum(at + tl.arange(0, N), stop - 1)
        major, minor, there = place(n, n >= 0, b, table, table_strides, blocks, SIZE)
        k_rows = k + major * k_strides[0] + minor * k_strides[1]
        scale = None
        if k_scale is not None:
            s = k_scale + major * scale_strides[0] + minor * scale_strides[1]
            scale = tl.load(s, mask=there, other=0.0)
        f = products(
            None,
            held,
            k_rows,
            None if table is None else there,
            scale,
            q_rows,
            k_strides,
            q_strides,
            D,
            E,
            STEPS,
        )
        if table is not None:
            f = tl.where(there[:, None], f, float("-inf"))
        best = larger(f, best)
    out = maxima + mine.to(tl.int64) * chunk + c
    tl.store(out, tl.max(best, 0), mask=c < chunk)


@triton.jit(do_not_specialize=["tokens", "blocks", "chunk", "tiles"])
def compare(
    q,
    k,
    k_scale,
    start,
    end,
    number,
    table,
    maxima,
    scores,
    tokens,
    blocks,
    chunk,
    tiles,
    q_strides,
    k_strides,
    scale_strides,
    table_strides,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    STEPS: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
):
    """Scores of a tile of tokens, from the largest f of each query, `maxima` ``(B, chunk)``."""
    b = (tl.program_id(0) // tiles).to(tl.int64)
    n = tl.program_id(0) % tiles * N + tl.arange(0, N)
    first, last, queries = bounds(b, start, end, number, tokens, chunk)
    inside = (n >= first) & (n < last)
    if tl.max(inside.to(tl.int32)) == 0:
        queries = 0

    best = tl.full((N,), float("-inf"), tl.float32)
    there = inside
    if queries > 0:
        real = tl.minimum(tl.maximum(n, first), last - 1)
        major, minor, there = place(real, inside, b, table, table_strides, blocks, SIZE)
        k_rows = k + major * k_strides[0] + minor * k_strides[1]
        masked = None if table is None else there
        scale = None
        if k_scale is not None:
            s = k_scale + major * scale_strides[0] + minor * scale_strides[1]
            scale = tl.load(s, mask=there, other=0.0)
        held = None
        if STEPS == 1:
            held = piece(k_rows, masked, 0, k_strides[2], k_strides[3], D, E)
        for at in range(0, queries, C):
            c = tl.minimum(at + tl.arange(0, C), queries - 1).to(tl.int64)
            q_rows = q + b * q_strides[0] + c * q_strides[1]
            f = products(
                held, None, k_rows, masked, scale, q_rows, k_strides, q_strides, D, E, STEPS
            )
            r = tl.load(maxima + b * chunk + c, mask=queries > 1, other=0.0)
            if tl.max(r, 0) == float("inf"):  # there the difference of the best token is NaN
                of_these = tl.where(r == float("inf"), 0.0, float("-inf"))
                best = tl.where(tl.max(f + of_these[None, :], 1) == float("inf"), 0.0, best)
            best = larger(tl.max(f - r[None, :], 1), best)

    best = tl.where(there & inside, best, float("-inf"))
    tl.store(scores + b * tokens + n, best, mask=n < tokens)


def token_scores(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    start: Tensor | None,
    end: Tensor | None,
    num_queries: Tensor | None,
    block_table: Tensor | None,
) -> Tensor:
    """``(B, N) float32`` of q ``(B, C, E)`` or ``(B, C, H, D)``; -inf outside start .. end - 1."""
    batch, chunk = q.shape[:2]
    if q.dim() == 3:
        q, k = q.unsqueeze(2), k.unsqueeze(2)
    groups, dim = k.shape[2:]
    heads = q.shape[2] // groups
    blocks, size = k.shape[:2]
    tokens = size if block_table is None else size * block_table.shape[1]
    scores = q.new_empty((batch, tokens), dtype=torch.float32)
    if not chunk or not scores.numel():
        return scores.fill_(-torch.inf)
    if chunk > 1 and heads > 1:
        q = q.unflatten(2, (groups, heads)).sum(3)  # added up in float32, by one launch

    tensors = (q, k, k_scale, start, end, num_queries, block_table)
    strides = (
        q.stride(),
        k.stride(),
        None if k_scale is None else k_scale.stride(),
        None if block_table is None else block_table.stride(),
    )
    options: dict[str, Any] = {"SIZE": None if block_table is None else size, "D": dim}
    with torch.cuda.device_of(q):
        if chunk == 1:
            width = min(triton.next_power_of_2(dim), 128)
            n = max(16, BYTES // (width * k.element_size()))
            options |= {"N": n, "E": width, "STEPS": groups * triton.cdiv(dim, width)}
            tiles = triton.cdiv(tokens, n)
            score[(batch * tiles,)](
                *tensors, scores, tokens, blocks, tiles, *strides, HEADS=heads, **options
            )
            return scores

        n = 64 if q.element_size() == 4 else 128 if tensor_cores() else 32
        c = min(max(16, triton.next_power_of_2(chunk)), n)
        width = max(16, triton.next_power_of_2(dim))
        width = width if groups == 1 and width <= n else min(width, 64)
        steps = groups * triton.cdiv(dim, width)
        options |= {"N": n, "C": c, "E": width, "STEPS": steps}
        options |= {"num_warps": 8 if c == n else 4, "num_stages": 2 if steps == 1 else 3}
        options["enable_fp_fusion"] = False  # a difference from what was rounded before
        n_tiles, c_tiles = triton.cdiv(tokens, n), triton.cdiv(chunk, c)
        slices = max(1, min(PROGRAMS // (batch * c_tiles), n_tiles))
        maxima = scores.new_empty((batch, slices, chunk))
        row_maxima[(batch * slices * c_tiles,)](
            *tensors, maxima, tokens, blocks, chunk, slices, c_tiles, *strides, **options
        )
        maxima = maxima.amax(1)
        compare[(batch * n_tiles,)](
            *tensors, maxima, scores, tokens, blocks, chunk, n_tiles, *strides, **options
        )
    return scores
