"""Two attentions as one in one Triton launch: same meaning as `reference.py`.

Floor: two outs and lses read and one written, 3 * (D * itemsize + 4) bytes of memory per row, or
the launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048  # of `out` in a program


@triton.jit
def exponential(lse, top):
    """exp(lse - top): 0 where nothing was attended to, also if nothing was anywhere."""
    return tl.where(lse == float("-inf"), 0.0, tl.exp(lse - top))


@triton.jit(do_not_specialize=["rows"])
def merge_rows(
    out_a,
    lse_a,
    out_b,
    lse_b,
    out,
    lse,
    rows,
    out_a_row,
    lse_a_row,
    out_b_row,
    lse_b_row,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)[None, :]
    live = row < rows
    a = tl.load(lse_a + row * lse_a_row, mask=live, other=0.0)
    b = tl.load(lse_b + row * lse_b_row, mask=live, other=0.0)
    # An attention over nothing counts for nothing, whatever memory its `out` is.
    real = live[:, None] & (d < D)
    of_a = real & (a > float("-inf"))[:, None]
