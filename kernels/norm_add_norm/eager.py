"""Norm, addition and norm in plain PyTorch: any device, differentiable. Same names as
`reference.py`."""

import torch
from torch import Tensor


def norm_add_norm(
    y: Tensor,
    residual: Tensor,
    post_weight: Tensor,
    next_weight: Tensor,
    eps: float,
    placement: str,
) -> tuple[Tensor, Tensor]:
    """``residual (..., H)`` and ``normed (..., H)``, both of y's dtype."""
    dtype = y.dtype
    y, residual = (x.contiguous().float() for x in (y, residual))  # and so are the results
    if placement == "branch":
        r = residual + norm(y, post_weight, eps)
    else:
        r = norm(residual + y, post_weight, eps)
    return r.to(dtype), norm(r, next_weight, eps).to(dtype)


def norm(v: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight.float() * (v * torch.rsqrt(v.square().mean(-1, keepdim=True) + eps))
