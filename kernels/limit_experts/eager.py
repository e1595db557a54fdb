"""Routing within a budget of experts for the whole batch, in plain PyTorch.

Same steps and names as `reference.py`.
"""

from typing import Any

import torch
from torch import Tensor
from triselect.kernels.grouped_topk.eager import grouped_topk


def limit_experts(logits: Tensor, top_k: int, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and experts ``(T, top_k)`` and the experts kept, ``(E,)`` bool.

    `arguments` are those of `grouped_topk`, then `budget` and `per_group`.
    """
    *router, budget, per_group = arguments
    num_expert_group, topk_group, *_ = router
    _, experts = grouped_topk(logits.detach(), top_k, *router)
    chosen = experts.flatten().long()
    # Integer sums do not depend on their order.
    votes = chosen.new_zeros(logits.shape[1]).scatter_add_(0, chosen, torch.ones_like(chosen))
    need = -(-top_k // topk_group)
    kept = most_voted(votes, budget, per_group, num_expert_group, need)
    return *grouped_topk(logits, top_k, *router, allowed=kept), kept


def most_voted(votes: Tensor, budget: int, per_group: bool, groups: int, need: int) -> Tensor:
    """The experts kept ``(E,)`` bool, by their votes ``(E,)``."""
    experts = len(votes)
    # No two are equal: of equal votes the lowest index is first.
    rank = votes * experts - torch.arange(experts, device=votes.device)
    first = rank.view(groups, -1).topk(budget if per_group else need, dim=-1).indices
    kept = torch.zeros(groups, experts // groups, dtype=torch.bool, device=votes.device)
    kept = kept.scatter(1, first, True).flatten()
    if not per_group:
        rank = rank.masked_fill(kept, -experts)
        kept = kept.scatter(0, rank.topk(budget - groups * need).indices, True)
    return kept
