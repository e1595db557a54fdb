"""Routing, then permutation, in NumPy: the meaning is that of the two operators apart."""

from triselect.kernels.grouped_topk.reference import grouped_topk
from triselect.kernels.permute.reference import permute


def route_and_permute(logits, top_k, *options):
    """Weights and experts ``(T, top_k)`` of `grouped_topk`, and what `permute` makes of them."""
    weights, experts = grouped_topk(logits, top_k, *options)
    return weights, experts, *permute(experts, logits.shape[1])
