"""Experts in plain PyTorch, on grouped_mm: any device, no loop over experts.

Weights of 8 bits are written out in the rows' dtype first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128


def grouped_swiglu_up(
    rows: Tensor, gate_up: Tensor, offsets: Tensor, source: Tensor | None, scale: Tensor | None
) -> Tensor:
    """h ``(S, I)`` of rows ``(R, H)`` and gate_up ``(E, 2I, H)``."""
    x = rows if source is None else rows.index_select(0, source.clamp(min=0))
    return swiglu(product(x, dequantised(gate_up, scale, rows.dtype), offsets))


def grouped_swiglu_down(h: Tensor, down: Tensor, offsets: Tensor, scale: Tensor | None) -> Tensor:
    """y ``(S, H)`` of h ``(S, I)`` and down ``(E, H, I)``."""
    return product(h, dequantised(down, scale, h.dtype), offsets)


def grouped_swiglu_up_backward(
    grad: Tensor, rows: Tensor, gate_up: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of rows and gate_up; both products are made again."""
    gate, up = product(rows, gate_up, offsets).float().chunk(2, -1)
    s = gate.sigmoid()
    d_gate = grad * up * s * (1 + gate * (1 - s))
    d_both = torch.cat((d_gate, grad * gate * s), -1).to(rows.dtype)
    return grouped_swiglu_down_backward(d_both, rows, gate_up, offsets)


def grouped_swiglu_down_backward(
    grad: Tensor, x: Tensor, weight: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """Of ``x @ weight.mT``, expert by expert."""
    grad = grad.contiguous()
    d_x = product(grad, weight.mT, offsets)
    ends, n, k = offsets[1:], grad.shape[1], x.shape[1]
    here = in_use(offsets, len(x))
    grad, x = (padded(t.masked_fill(~here, 0), 1) for t in (grad, x))
    return d_x, F.grouped_mm(grad.mT, x, offs=ends)[:, :n, :k].contiguous()


def swiglu(both: Tensor) -> Tensor:
    gate, up = both.float().chunk(2, -1)
    return (F.silu(gate) * up).to(both.dtype)


def product(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """``x @ weight[e].T`` of the rows of each expert ``(S, N)``, zero where there is none."""
    n = weight.shape[1]
    if not len(x):
        return x.new_empty((0, n))
    x, weight = padded(x, 1).contiguous(), padded(padded(weight, 2), 1)
    y = F.grouped_mm(x, weight.mT, offs=offsets[1:])[:, :n]
    return y.masked_fill(~in_use(offsets, len(x)), 0)


def in_use(offsets: Tensor, rows: int) -> Tensor:
    return (torch.arange(rows, device=offsets.device) < offsets[-1])[:, None]


def padded(x: Tensor, dim: int) -> Tensor:
    """Zeros up to a multiple of 16 bytes, which grouped_mm asks of rows."""
    short = -x.shape[dim] % (16 // x.element_size())
    return F.pad(x, (*(0, 0) * (x.dim() - 1 - dim), 0, short)) if short else x


def dequantised(q: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    if scale is None:
        return q
    if scale.dim() == 2:
        return (q.float() * scale[..., None]).to(dtype)
    each = scale.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    return (q.float() * each[:, : q.shape[1], : q.shape[2]]).to(dtype)
