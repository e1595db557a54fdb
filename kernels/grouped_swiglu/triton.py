"""Experts in Triton: each of the two products in one launch, a program for a tile of its output.

Tiles of rows are found from the offsets by every program for itself, so that the grid depends on
shapes alone. Weights are the left operand, rows the right one: a few rows waste little of a tensor
core, and weights of 8 bits become those of rows in registers, exactly; their scales are applied to
the sums, of a block of 128 or of all. Rows are gathered by the program that multiplies them.

Floors: of few rows for each expert, the bytes of the weights of all experts that have rows over
the bandwidth, E' * 2I * H and E' * H * I numbers, or the launches; of many, 4 * S * I * H and
2 * S * H * I operations at the rate of the tensor cores. Neither has been measured yet.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.shared.dot import INTERPRETED, dot, rounded, tensor_cores

BLOCK = tl.constexpr(128)  # of weights that share a scale, in both directions
GROUP = tl.constexpr(8)  # tiles of rows that go through the weights side by side
PROGRAMS = 264  # two for each of an H100's processors: as many as few rows are given to
LARGE = 160 * 2**10  # bytes of shared memory that only the largest devices have
LARGEST_INT32 = tl.constexpr(2**31 - 1)


@triton.jit
def within(x, limit):
    return tl.minimum(tl.maximum(x, 0), limit)


@triton.jit
def locate(offsets, tile, count, E: tl.constexpr, ROWS: tl.constexpr):
    """The expert of a tile of rows, its first row, and the row behind the expert's last.

    Rows that no expert has are those of expert E; tiles behind the last one have a later expert.
    """
    e = tl.arange(0, triton.next_power_of_2(E + 1))
    begin = within(tl.load(offsets + e, mask=e <= E, other=LARGEST_INT32), count)
    end = within(tl.load(offsets + e + 1, mask=e < E, other=LARGEST_INT32), count)
    tiles = tl.cumsum((tl.maximum(end - begin, 0) + ROWS - 1) // ROWS, 0)
    before = tiles <= tile
    expert = tl.sum(before.to(tl.int32), 0)
    tile -= tl.max(tl.where(before, tiles, 0), 0)
    begin = within(tl.load(offsets + tl.minimum(expert, E)), count)
    end = within(tl.load(offsets + expert + 1, mask=expert < E, other=LARGEST_INT32), count)
    return expert, begin + tile * ROWS, end


@triton.jit
def numbers(at, mask, POLICY: tl.constexpr):
    """Weights at `at`, 0 where masked; float8 e4m3 is decoded where it comes as its bits."""
    if mask is None:
        w = tl.load(at, eviction_policy=POLICY)
    else:
        w = tl.load(at, mask=mask, other=0.0, eviction_policy=POLICY)
    if w.dtype == tl.uint8:
        # Among the bits of float16 its sign is there twice, and its exponents are 8 apart.
        bits = (w.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -16385
        w = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        w = tl.where(tl.abs(w) == 480.0, float("nan"), w)
    elif w.dtype == tl.float8e4nv:
        w = w.to(tl.float32)  # quick, while to bfloat16 is not
    return w


@triton.jit
def add_product(total, w, x, scale):
    """``total + scale * (w @ x.T)``; for one row, terms of it that are still to be added up."""
    if x.shape[0] == 1:
        product = w.to(tl.float32) * x.to(tl.float32)
        if scale is not None:
            product *= scale[:, None]
        total += product
    elif scale is None:
        total = dot(w, tl.trans(x), total)
    else:
        total += dot(w, tl.trans(x), tl.zeros_like(total)) * scale[:, None]
    return total


@triton.jit(do_not_specialize=["count", "num_rows", "tiles"])
def multiply(
    x,
    source,
    offsets,
    weight,
    scale,
    out,
    count,
    num_rows,
    tiles,
    x_stride,
    weight_stride,
    scale_strides,
    E: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    POLICY: tl.constexpr,
):
    """A tile of x W^T ``(count, N)``, or where it is GATED, of silu(x W^T) * x V^T: V follows W."""
    across: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    band = tl.program_id(0) // (GROUP * across) * GROUP
    place = tl.program_id(0) % (GROUP * across)
    high = tl.minimum(tiles - band, GROUP)
    expert, first, end = locate(offsets, band + place % high, count, E, ROWS)
    if expert > E:
        return
    mine = expert < E

    i = first + tl.arange(0, ROWS)
    row = tl.minimum(i, end - 1)  # twice the last one, rather than masks
    if source is not None:
        row = within(tl.load(source + row, mask=mine, other=0), num_rows - 1)
    x += row.to(tl.int64)[:, None] * x_stride
    n = place // high * COLUMNS + tl.arange(0, COLUMNS)
    column = tl.minimum(n, N - 1)
    weight += tl.minimum(expert, E - 1).to(tl.int64) * weight_stride
    w_rows = weight + column.to(tl.int64)[:, None] * K

    BLOCKED: tl.constexpr = scale is not None and len(scale_strides) == 3
    scale_w = None
    scale_v = None
    if scale is not None:
        scale += tl.minimum(expert, E - 1).to(tl.int64) * scale_strides[0]
        if BLOCKED:
            scale_w = scale + (column // BLOCK) * scale_strides[1]
            scale_v = scale + ((column + N) // BLOCK) * scale_strides[1]

    y = tl.zeros((COLUMNS, WIDTH if ROWS == 1 else ROWS), tl.float32)
    z = tl.zeros_like(y)
    for step in range(0, tl.where(mine, (K + WIDTH - 1) // WIDTH, 0)):
        k = step * WIDTH + tl.arange(0, WIDTH)[None, :]
        mask = None if K % WIDTH == 0 else k < K
        a = tl.load(x + k) if mask is None else tl.load(x + k, mask=mask, other=0.0)
        w = numbers(w_rows + k, mask, POLICY)
        s = None
        if BLOCKED:
            s = tl.load(scale_w + step * WIDTH // BLOCK)
        y = add_product(y, w, a, s)
        if GATED:
            v = numbers(w_rows + N * K + k, mask, POLICY)
            if BLOCKED:
                s = tl.load(scale_v + step * WIDTH // BLOCK)
            z = add_product(z, v, a, s)
    if ROWS == 1:
        y = tl.sum(y, 1)[:, None]
        z = tl.sum(z, 1)[:, None]
    if scale is not None and not BLOCKED:
        y *= tl.load(scale + column, mask=mine, other=0.0)[:, None]
        z *= tl.load(scale + column + N, mask=mine & GATED, other=0.0)[:, None]
    if GATED:
        y = y / (1 + tl.exp(-y)) * z
    at = i.to(tl.int64)[:, None] * N + n[None, :]
    y = rounded(tl.trans(y), out.dtype.element_ty)
    tl.store(out + at, y, mask=(i < end)[:, None] & (n < N)[None, :])


def grouped_swiglu_up(
    rows: Tensor, gate_up: Tensor, offsets: Tensor, source: Tensor | None, scale: Tensor | None
) -> Tensor:
    """h ``(S, I)`` of rows ``(R, H)`` and gate_up ``(E, 2I, H)``."""
    count = len(rows) if source is None else len(source)
    h = rows.new_empty((count, gate_up.shape[1] // 2))
    return launch(rows, source, offsets, gate_up, scale, h, gated=True)


def grouped_swiglu_down(h: Tensor, down: Tensor, offsets: Tensor, scale: Tensor | None) -> Tensor:
    """y ``(S, N)`` of h ``(S, I)`` and down ``(E, N, I)``."""
    y = h.new_empty((len(h), down.shape[1]))
    return launch(h, None, offsets, down, scale, y, gated=False)


def launch(
    x: Tensor,
    source: Tensor | None,
    offsets: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    out: Tensor,
    *,
    gated: bool,
) -> Tensor:
    count, n = out.shape
    if not out.numel():
        return out
    x = x if x.stride(1) == 1 else x.contiguous()
    with torch.cuda.device_of(x):
        if weight.dtype is torch.float8_e4m3fn and not float8():
            weight = weight.view(torch.uint8)
        experts = len(weight)
        tile = plan(count, experts, n, gated, x, weight)
        # No more tiles than rows, and a part of one at most for each expert and for those without.
        tiles = (count + min(experts + 1, count) * (tile["ROWS"] - 1)) // tile["ROWS"]
        multiply[(tiles * triton.cdiv(n, tile["COLUMNS"]),)](
            x,
            None if source is None else source.contiguous(),
            offsets.contiguous(),
            weight,
            scale,
            out,
            count,
            len(x),
            tiles,
            x.stride(0),
            weight.stride(0),
            None if scale is None else scale.stride(),
            E=experts,
            N=n,
            K=x.shape[1],
            GATED=gated,
            **tile,
        )
    return out


def plan(
    count: int, experts: int, n: int, gated: bool, x: Tensor, weight: Tensor
) -> dict[str, Any]:
    """Tiles, by the rows that an expert has on average, and what they are compiled with.

    Few rows wait for weights: many bytes of these are to be under way, in many programs. Many rows
    read them as seldom as registers for sums allow, and scales of blocks need a second set of sums.
    """
    parts = 2 if gated else 1
    blocks = weight.element_size() == 1 and weight.dtype is not torch.int8
    rows = triton.next_power_of_2(triton.cdiv(3 * count, 2 * experts))  # some have more than others
    few = rows <= 16
    warps, stages = 4, 3
    if x.dtype == torch.float32 or not tensor_cores():
        wide = x.element_size() == 4
        if 2 * count <= experts:
            tile = (1, 32, 128 if wide or blocks else 256)
        elif few:
            tile = (16, 64, 32) if wide else (16, 32, 64)
        else:
            tile = (64, 64, 16) if wide else (32, 64, 32)
    else:
        room = shared_memory()
        if few:
            tile = (16, 64, 128)
            warps = 2 if weight.element_size() == 1 else 4  # that none has what another converts
        elif rows <= 64:
            tile = (rows, 128, 128 if blocks else 64)
        elif room < LARGE or blocks:
            tile = (128, 128, 128 if blocks and weight.dtype is not torch.uint8 else 64)
            warps = 8 if weight.element_size() == 1 else 4
        else:
            tile = (128, 256, 64)
            warps = 8
        step = (tile[1] * weight.element_size() + tile[0] * x.element_size()) * tile[2]
        stages = 1 + max(1, min(3, room // step))
    rows, columns, width = tile
    if x.shape[1] * weight.element_size() % 16:  # loads through registers, a number at a time
        width = max(16, width // 4)
    while few and columns > 32 and min(count, experts) * triton.cdiv(n * parts, columns) < PROGRAMS:
        columns //= 2
    return {
        "ROWS": rows,
        "COLUMNS": columns // parts,
        "WIDTH": width,
        "POLICY": "evict_first" if few else "",
        "num_warps": warps,
        "num_stages": stages,
    }


def shared_memory() -> int:
    """Bytes that loads under way may have, without those that are being multiplied."""
    if INTERPRETED.value:
        return 2**16
    target = triton.runtime.driver.active.get_current_target()
    if target.backend != "cuda":
        return 2**14
    if 90 <= target.arch < 120:
        return LARGE
    return 80 * 2**10 if target.arch in (80, 87) else 2**16


def float8() -> bool:
    """Whether Triton converts float8 e4m3 on the current device: not before sm_89."""
    if INTERPRETED.value:
        return True
    target = triton.runtime.driver.active.get_current_target()
    return target.backend != "cuda" or target.arch >= 89
