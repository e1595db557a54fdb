"""Queries summed over the heads that share a key: the sum over all heads of q_h · k_g(h) is the sum
over the groups of (sum over a group's heads of q_h) · k_g, exactly.
"""

from torch import Tensor


def fold(heads: Tensor, groups: int) -> Tensor:
    """``(..., H, D)`` to ``(..., G, D)``, added up in float32; as it is where H = G."""
    if heads.shape[-2] == groups:
        return heads
    return heads.unflatten(-2, (groups, -1)).float().sum(-2)
