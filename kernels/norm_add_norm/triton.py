"""Norm, addition and norm in one Triton launch: same meaning as `reference.py`.

    N(v, w) = w · v / rms(v),   r = residual + N(y) or N(residual + y),   z = N(r)

A program has a row. Floor: y and the residual read once and both results written once, 4 * H *
itemsize bytes of memory per row, or the launch. Rows too long for registers are read again, from
the cache as a rule, and r is computed again rather than read: it is not rounded on its way to z.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.shared.dot import rounded

EACH = 16  # numbers to a thread
LONGEST = 16384  # numbers in registers


@triton.jit
def inverse_rms(squares, eps, H: tl.constexpr):
    """1 / rms from the sum of the squares."""
    return tl.div_rn(1.0, tl.sqrt_rn(squares / H + eps))


@triton.jit
def load(at, i, mask):
    return tl.load(at + i, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def normed_first(y, residual, i, mask, BRANCH: tl.constexpr):
    """What the first norm is of."""
    v = load(y, i, mask)
    if not BRANCH:
        v = load(residual, i, mask) + v
    return v


@triton.jit
def added(v, residual, post_weight, scale, i, mask, BRANCH: tl.constexpr):
    """r, from what the first norm is of."""
    r = load(post_weight, i, mask) * (v * scale)
    if BRANCH:
        r = load(residual, i, mask) + r
    return r


@triton.jit
def norm_add_norm_rows(
    y,
    residual,
    post_weight,
    next_weight,
    r_out,
    z_out,
    y_row,
    residual_row,
    eps,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    BRANCH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    y += row * y_row
    residual += row * residual_row
    r_out += row * H
    z_out += row * H
    dtype: tl.constexpr = r_out.dtype.element_ty
    i = tl.arange(0, BLOCK)
    if H <= BLOCK:
        mask = i < H
        v = normed_first(y, residual, i, mask, BRANCH)
        scale = inverse_rms(tl.sum(v * v), eps, H)
        r = added(v, residual, post_weight, scale, i, mask, BRANCH)
        tl.store(r_out + i, rounded(r, dtype), mask=mask)
        scale = inverse_rms(tl.sum(r * r), eps, H)
        z = load(next_weight, i, mask) * (r * scale)
        tl.store(z_out + i, rounded(z, dtype), mask=mask)
    else:
        squares = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, H, BLOCK):
            v = normed_first(y, residual, first + i, first + i < H, BRANCH)
            squares += v * v
        scale = inverse_rms(tl.sum(squares), eps, H)
        squares = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, H, BLOCK):
            mask = first + i < H
            v = normed_first(y, residual, first + i, mask, BRANCH)
            r = added(v, residual, post_weight, scale, first + i, mask, BRANCH)
            tl.store(r_out + first + i, rounded(r, dtype), mask=mask)
            squares += r * r
        scale_of_r = inverse_rms(tl.sum(squares), eps, H)
        for first in range(0, H, BLOCK):
            mask = first + i < H
            v = normed_first(y, residual, first + i, mask, BRANCH)
            r = added(v, residual, post_weight, scale, first + i, mask, BRANCH)
            z = load(next_weight, first + i, mask) * (r * scale_of_r)
            tl.store(z_out + first + i, rounded(z, dtype), mask=mask)


def norm_add_norm(
    y: Tensor,
    residual: Tensor,
    post_weight: Tensor,
    next_weight: Tensor,
    eps: float,
    placement: str,
) -> tuple[Tensor, Tensor]:
    """``residual (..., H)`` and ``normed (..., H)``, both of y's dtype."""
    r, z = y.new_empty(y.shape), y.new_empty(y.shape)
    hidden = y.shape[-1]
    rows = y.numel() // hidden
    if not rows:
        return r, z
    # Rows of any stride; only what has no one stride for all of them is copied.
    both = [x.reshape(rows, hidden) for x in (y, residual)]
    both = [x if x.stride(1) == 1 else x.contiguous() for x in both]
    block = min(triton.next_power_of_2(hidden), LONGEST)
    with torch.cuda.device_of(y):
        norm_add_norm_rows[(rows,)](
            both[0],
            both[1],
            post_weight.contiguous(),
            next_weight.contiguous(),
            r,
            z,
            both[0].stride(0),
            both[1].stride(0),
            eps,
            H=hidden,
            BLOCK=block,
            BRANCH=placement == "branch",
            num_warps=min(max(1, block // (32 * EACH)), 16),
        )
    return r, z
