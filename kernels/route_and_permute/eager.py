"""Routing, then permutation, in plain PyTorch."""

from typing import Any

from torch import Tensor
from triselect.kernels.grouped_topk.eager import grouped_topk
from triselect.kernels.permute.eager import permute


def route_and_permute(logits: Tensor, top_k: int, *options: Any) -> tuple[Tensor, ...]:
    """Weights and experts ``(T, top_k)`` of `grouped_topk`, and what `permute` makes of them."""
    weights, experts = grouped_topk(logits, top_k, *options)
    return weights, experts, *permute(experts, logits.shape[1])
