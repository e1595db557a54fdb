"""Two attentions as one in one Triton launch: same meaning as `reference.py`.

Floor: two outs and lses read and one written, 3 * (D * itemsize + 4) bytes of memory per row, or
the launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.shared.dot import rounded

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
    some_a = real & (a != float("-inf"))[:, None]
    some_b = real & (b != float("-inf"))[:, None]
    x = tl.load(out_a + row[:, None] * out_a_row + d, mask=some_a, other=0.0).to(tl.float32)
    y = tl.load(out_b + row[:, None] * out_b_row + d, mask=some_b, other=0.0).to(tl.float32)
    top = tl.maximum(a, b)
    of_a, of_b = exponential(a, top), exponential(b, top)
    total = of_a + of_b
    both = x * of_a[:, None] + y * of_b[:, None]
    both /= tl.where(total == 0, 1.0, total)[:, None]
    both = rounded(both, out.dtype.element_ty)
    tl.store(out + row[:, None] * D + d, both, mask=real)
    tl.store(lse + row, top + tl.log(total), mask=live)


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """``out (..., D)`` in out_a's dtype and ``lse (...)`` float32."""
    out = out_a.new_empty(out_a.shape)
    lse = lse_a.new_empty(lse_a.shape)
    rows, dim = lse.numel(), out.shape[-1]
    if not rows:
        return out, lse
    # Rows of any stride; only what has no one stride for all of them is copied.
    outs = [x.reshape(rows, dim) for x in (out_a, out_b)]
    outs = [x if x.stride(1) == 1 else x.contiguous() for x in outs]
    lses = [x.reshape(rows) for x in (lse_a, lse_b)]
    width = triton.next_power_of_2(dim)
    tile = max(1, ELEMENTS // width)
    with torch.cuda.device_of(out):
        merge_rows[(triton.cdiv(rows, tile),)](
            outs[0],
            lses[0],
            outs[1],
            lses[1],
            out,
            lse,
            rows,
            outs[0].stride(0),
            lses[0].stride(0),
            outs[1].stride(0),
            lses[1].stride(0),
            D=dim,
            ROWS=tile,
            WIDTH=width,
            num_warps=4,
        )
    return out, lse
