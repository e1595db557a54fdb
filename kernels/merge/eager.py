"""Two attentions over disjoint tokens as one, in plain PyTorch. Same names as `reference.py`."""

import torch
from torch import Tensor


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """``out (..., D)`` of out_a's dtype and ``lse (...) float32``."""
    lse = torch.logaddexp(lse_a, lse_b)
    out = torch.zeros_like(out_a, dtype=torch.float32)
    for part, of_part in ((out_a, lse_a), (out_b, lse_b)):
        nothing = (of_part == -torch.inf)[..., None]
        weight = (of_part - lse).exp()[..., None]
        out += torch.where(nothing, 0.0, part.float() * weight)
    return out.to(out_a.dtype), lse
