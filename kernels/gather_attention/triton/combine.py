"""Shares of the tokens put together in their order, a program for each row: a query and a head."""

import triton
import triton.language as tl
from triselect.kernels.merge.triton import exponential

READ = tl.constexpr(16)  # shares added up at a time


@triton.jit(do_not_specialize=["rows", "shares"])
def combine(
    parts,
    parts_lse,
    out,
    lse,
    rows,
    shares,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    SHARES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SHARES)
    at = s.to(tl.int64) * rows + row
    top = tl.max(tl.load(parts_lse + at, mask=s < shares, other=float("-inf")), 0)
    total = 0.0
    acc = tl.zeros((WIDTH,), tl.float32)
    d = tl.arange(0, WIDTH)[None, :]
    for first in range(0, shares, READ):
        s = first + tl.arange(0, READ)
        at = s.to(tl.int64) * rows + row
        real = s < shares
        weight = exponential(tl.load(parts_lse + at, mask=real, other=float("-inf")), top)
        some = real[:, None] & (d < D)
        part = tl.load(parts + at[:, None] * D + d, mask=some, other=0.0)
        total += tl.sum(weight, 0)
        acc += tl.sum(weight[:, None] * part, 0)
    d = tl.arange(0, WIDTH)
    tl.store(out + row * D + d, acc / tl.where(total == 0, 1.0, total), mask=d < D)
    tl.store(lse + row, top + tl.log(total))
