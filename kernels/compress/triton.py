"""Compression of queries or keys in one Triton launch.

    y = W · concat over groups g of (sum over the heads h of g of x_h) + b

in 8 bits divided by scale = max |y| / limit and rounded to nearest, ties to even.

Heads are added up in registers, so that only x, W and y cross memory: for many tokens the floor is
their bytes over the bandwidth, and for few the launch, as W stays in the cache. Few tokens are
given to many programs by numbers of y, as long as no scale needs all of these.

A sum of heads of 16 bits goes to tensor cores as two numbers of 16 bits, which are as good as one
of float32 and cost nothing while memory is the limit.
"""

from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.shared.dot import dot, rounded, tensor_cores

PROGRAMS = 128  # that the numbers of few tokens are given to
LOADING = 3 * 2**14  # bytes, at most, for steps to come
LARGEST = tl.constexpr(3.4028234663852886e38)
WHOLE = tl.constexpr(1.5 * 2.0**23)  # added to a float32 and taken off, rounds it to an integer


@triton.jit
def project(
    rows,
    there,
    weight,
    bias,
    e,
    x_strides,
    weight_strides,
    bias_stride,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    E: tl.constexpr,
    FLOAT32: tl.constexpr,
):
    """The numbers e of y, ``(tokens, e)`` float32, of tokens whose heads are at `rows`."""
    PIECES: tl.constexpr = (D + WIDTH - 1) // WIDTH
    SHRINK: tl.constexpr = triton.next_power_of_2(HEADS)  # keeps sums within 16 bits
    y = tl.zeros((rows.shape[0], e.shape[0]), tl.float32)
    for i in range(STEPS):
        group = tl.cast(i // PIECES, tl.int64)
        d = i % PIECES * WIDTH + tl.arange(0, WIDTH)
        at = weight + e[:, None] * weight_strides[0] + (group * D + d)[None, :] * weight_strides[1]
        w = tl.load(at, mask=(e < E)[:, None] & (d < D)[None, :], other=0.0)
        at = rows[:, None] + group * HEADS * x_strides[2] + d[None, :] * x_strides[3]
        mask = there[:, None] & (d < D)[None, :]
        x = tl.load(at, mask=mask, other=0.0)
        if HEADS > 1:
            x = x.to(tl.float32)
            for _ in tl.static_range(1, HEADS):
                at += x_strides[2]
                x += tl.load(at, mask=mask, other=0.0).to(tl.float32)
        if FLOAT32:
            y = dot(x.to(tl.float32), tl.trans(w.to(tl.float32)), y)
        elif HEADS == 1:
            y = dot(x, tl.trans(w), y)
        else:
            x *= 1 / SHRINK
            high = x.to(w.dtype)
            low = tl.where(tl.abs(x) <= LARGEST, x - high.to(tl.float32), 0.0)
            y = dot(low, tl.trans(w), dot(high, tl.trans(w), y))
    if HEADS > 1 and not FLOAT32:
        y *= SHRINK
    if bias is not None:
        y += tl.load(bias + e * bias_stride, mask=e < E, other=0.0).to(tl.float32)[None, :]
    return y


@triton.jit
def to_scale(most, LIMIT: tl.constexpr):
    """What makes `most` the limit; NaN where it is not finite."""
    scale = tl.div_rn(most, LIMIT)
    return tl.where(scale <= LARGEST, scale, float("nan"))


@triton.jit
def largest(y):
    """max |y| of each token, infinite where one is not finite."""
    size = tl.abs(y)
    return tl.max(tl.where(size <= LARGEST, size, float("inf")), 1)


@triton.jit
def store_scaled(y, scale, out, mask, LIMIT: tl.constexpr):
    scale = tl.broadcast_to(scale[:, None], y.shape)
    z = tl.where(scale > 0, tl.div_rn(y, scale), 0.0)  # neither where it is NaN
    z = tl.minimum(tl.maximum(z, -LIMIT), LIMIT)  # beyond it where the scale has few digits left
    if LIMIT == 127:
        z = z + WHOLE - WHOLE
    tl.store(out, rounded(z, out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "length", "rows", "tiles"])
def write(
    x,
    weight,
    bias,
    slots,
    values,
    scale,
    tokens,
    length,
    rows,
    tiles,
    x_strides,
    weight_strides,
    bias_stride,
    LIMIT: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    E: tl.constexpr,
    TILE: tl.constexpr,
    TOKENS: tl.constexpr,
    FLOAT32: tl.constexpr,
):
    """A tile of the numbers of a tile of tokens, or all of them where they have a scale."""
    t = tl.program_id(0) // tiles * TOKENS + tl.arange(0, TOKENS)
    e = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    there = t < tokens
    row = t.to(tl.int64)
    if slots is not None:
        row = tl.load(slots + t, mask=there, other=-1).to(tl.int64)
        there = (row >= 0) & (row < rows)
    at = x + (t // length).to(tl.int64) * x_strides[0] + (t % length).to(tl.int64) * x_strides[1]
    out = values + row[:, None] * E
    if scale is None or E <= TILE:
        y = project(
            at,
            there,
            weight,
            bias,
            e,
            x_strides,
            weight_strides,
            bias_stride,
            HEADS,
            D,
            WIDTH,
            STEPS,
            E,
            FLOAT32,
        )
        mask = there[:, None] & (e < E)[None, :]
        if scale is None:
            tl.store(out + e[None, :], rounded(y, values.dtype.element_ty), mask=mask)
        else:
            s = to_scale(largest(y), LIMIT)
            store_scaled(y, s, out + e[None, :], mask, LIMIT)
            tl.store(scale + row, s, mask=there)
    else:
        most = tl.zeros((TOKENS,), tl.float32)
        for first in range(0, E, TILE):
            y = project(
                at,
                there,
                weight,
                bias,
                first + e,
                x_strides,
                weight_strides,
                bias_stride,
                HEADS,
                D,
                WIDTH,
                STEPS,
                E,
                FLOAT32,
            )
            most = tl.maximum(most, largest(y))
        s = to_scale(most, LIMIT)
        for first in range(0, E, TILE):
            y = project(
                at,
                there,
                weight,
                bias,
                first + e,
                x_strides,
                weight_strides,
                bias_stride,
                HEADS,
                D,
                WIDTH,
                STEPS,
                E,
                FLOAT32,
            )
            mask = there[:, None] & (first + e < E)[None, :]
            store_scaled(y, s, out + (first + e)[None, :], mask, LIMIT)
        tl.store(scale + row, s, mask=there)


def compress(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slots: Tensor | None,
    values: Tensor,
    scale: Tensor | None,
) -> None:
    """Writes into `values` ``(..., E)`` and `scale` ``(...)`` what x ``(..., H, D)`` becomes."""
    (numbers, columns), (heads, dim) = weight.shape, x.shape[-2:]
    groups = columns // dim
    while x.dim() < 4:
        x = x.unsqueeze(0)
    x = x.flatten(0, -4)  # up to four dimensions as they are, whatever their strides
    tokens = x.shape[0] * x.shape[1]
    if not tokens:
        return
    with torch.cuda.device_of(x):
        fast = x.dtype == weight.dtype and x.element_size() == 2 and tensor_cores()
        rows = 64 if fast and tokens > 16 * PROGRAMS and heads <= 4 * groups else 16
        tiles = 1
        if scale is None:
            tiles = min(triton.cdiv(PROGRAMS, triton.cdiv(tokens, rows)), triton.cdiv(numbers, 16))
        tile = min(max(16, triton.next_power_of_2(triton.cdiv(numbers, tiles))), 128)
        tiles = triton.cdiv(numbers, tile) if scale is None else 1
        width = min(max(16, triton.next_power_of_2(dim)), 128 if fast and tile < 128 else 64)
        step = (rows * (heads // groups) + tile) * width * x.element_size()
        write[(triton.cdiv(tokens, rows) * tiles,)](
            x,
            weight,
            bias,
            None if slots is None else slots.flatten().contiguous(),
            values,
            scale,
            tokens,
            x.shape[1],
            prod(values.shape[:-1]),
            tiles,
            x.stride(),
            weight.stride(),
            0 if bias is None else bias.stride(0),
            LIMIT=127 if values.dtype == torch.int8 else 448,
            HEADS=heads // groups,
            D=dim,
            WIDTH=width,
            STEPS=groups * triton.cdiv(dim, width),
            E=numbers,
            TILE=tile,
            TOKENS=rows,
            FLOAT32=not fast,
            num_warps=4 if fast and rows == 16 else 8,
            num_stages=1 + min(3, LOADING // step),
        )
