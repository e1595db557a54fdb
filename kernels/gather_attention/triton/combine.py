"""Shares of the tokens put together in their order, a program for each row: a query and a head."""

import triton
import triton.language as tl
from triselect.kernels.merge.triton import exponential
from triselect.kernels.shared.dot import rounded

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
    at = parts_lse + s.to(tl.int64) * rows + row
    top = tl.max(tl.load(at, mask=s < shares, other=float("-inf")), 0)
    total = 0.0
    acc = tl.zeros((WIDTH,), tl.float32)
    d = tl.arange(0, WIDTH)[None, :]
    for first in range(0, shares, READ):
        share = first + tl.arange(0, READ)
        real = share < shares
        part_row = share.to(tl.int64) * rows + row
        weight = exponential(tl.load(parts_lse + part_row, mask=real, other=float("-inf")), top)
        some = real[:, None] & (d < D)
        part = tl.load(parts + part_row[:, None] * D + d, mask=some, other=0.0)
        total += tl.sum(weight, 0)
        acc += tl.sum(weight[:, None] * part, 0)
    acc = rounded(acc / tl.where(total == 0, 1.0, total), out.dtype.element_ty)
    tl.store(out + row * D + d, acc[None, :], mask=d < D)
    tl.store(lse + row, top + tl.log(total))
