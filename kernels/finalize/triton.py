"""What experts say about a token in one Triton launch: same meaning as `reference.py`.

Floor: the rows read and the outputs written once, (T * K + T) * H * itemsize bytes of memory, or
the launch. Rows of a token lie anywhere, so a program has several of them on their way at a time;
they are added up in the order of k, whatever comes first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.shared.dot import rounded

COLUMNS = 1024  # of a token in a program
AT_ONCE = 8  # rows on their way: more would only take registers


@triton.jit(do_not_specialize=["count", "experts_count"])
def combine(
    rows,
    weights,
    slot_of,
    experts,
    bias,
    residual,
    residual2,
    out,
    count,
    experts_count,
    rows_row,
    weights_row,
    slots_row,
    experts_row,
    bias_row,
    residual_row,
    residual2_row,
    out_row,
    H: tl.constexpr,
    K: tl.constexpr,
    AT_ONCE: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    t = (tl.program_id(0) // TILES).to(tl.int64)
    h = tl.program_id(0) % TILES * COLUMNS + tl.arange(0, COLUMNS)
    inside = h < H
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, K, AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            k = first + i
            slot = tl.load(slot_of + t * slots_row + k, mask=k < K, other=-1)
            there = (slot >= 0) & (slot < count)
            if bias is not None:
                expert = tl.load(experts + t * experts_row + k, mask=k < K, other=-1)
                there = there & (expert >= 0) & (expert < experts_count)
            w = tl.load(weights + t * weights_row + k, mask=k < K, other=0.0)
            at = rows + slot.to(tl.int64) * rows_row + h
            said = tl.load(at, mask=inside & there, other=0.0).to(tl.float32)
            if bias is not None:
                at = bias + expert.to(tl.int64) * bias_row + h
                said += tl.load(at, mask=inside & there, other=0.0).to(tl.float32)
            total += tl.where(there, w, 0.0) * said
    if residual is not None:
        at = residual + t * residual_row + h
        total += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if residual2 is not None:
        at = residual2 + t * residual2_row + h
        total += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + t * out_row + h, rounded(total, out.dtype.element_ty), mask=inside)


def finalize_out(
    rows: Tensor,
    weights: Tensor,
    slot_of: Tensor,
    experts: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    residual2: Tensor | None,
    out: Tensor,
) -> None:
    """Writes into `out` ``(T, H)``, whose columns lie side by side."""
    tokens, hidden = out.shape
    if not out.numel():
        return
    inputs = [rows, weights, slot_of, experts, bias, residual, residual2]
    inputs = [x if x is None or x.stride(1) == 1 else x.contiguous() for x in inputs]
    tiles = triton.cdiv(hidden, COLUMNS)
    with torch.cuda.device_of(out):
        combine[(tokens * tiles,)](
            *inputs,
            out,
            rows.shape[0],
            0 if bias is None else bias.shape[0],
            *(0 if x is None else x.stride(0) for x in (*inputs, out)),
            H=hidden,
            K=slot_of.shape[1],
            AT_ONCE=max(1, min(AT_ONCE, slot_of.shape[1])),
            TILES=tiles,
            COLUMNS=min(COLUMNS, triton.next_power_of_2(hidden)),
            num_warps=2,
        )


def finalize(
    rows: Tensor,
    weights: Tensor,
    slot_of: Tensor,
    experts: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    residual2: Tensor | None,
) -> Tensor:
    """``out (T, H)`` of rows' dtype."""
    out = rows.new_empty((slot_of.shape[0], rows.shape[1]))
    finalize_out(rows, weights, slot_of, experts, bias, residual, residual2, out)
    return out
