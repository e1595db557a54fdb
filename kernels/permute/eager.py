"""Permutation of token copies by expert in plain PyTorch: any device, no synchronisation.

Same names as `reference.py`. torch has no counting sort, so this one sorts.
"""

import torch
from torch import Tensor


def permute(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """``source (T * K,)``, ``slot_of (T, K)`` and ``offsets (E + 1,)``, all int32."""
    flat = experts.flatten()
    real = (flat >= 0) & (flat < num_experts)
    ordered, order = flat.masked_fill(~real, num_experts).sort(stable=True)
    source = (order // experts.shape[1]).masked_fill(ordered == num_experts, -1)
    row = torch.arange(len(flat), device=flat.device)
    slot_of = torch.empty_like(order).scatter_(0, order, row).masked_fill(~real, -1)
    bounds = torch.arange(num_experts + 1, device=flat.device, dtype=flat.dtype)
    offsets = torch.searchsorted(ordered, bounds, out_int32=True)
    return source.int(), slot_of.view(experts.shape).int(), offsets
