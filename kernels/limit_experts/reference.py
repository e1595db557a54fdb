"""Routing within a budget of experts for the whole batch, in NumPy: what the operator means.

1.  votes_e = tokens that `grouped_topk` sends to expert e
2.  every group keeps its `budget` most-voted experts                       (per_group)
    | all keep `budget`: first the K' most-voted of every group, so that no routing runs dry, then
      the most-voted of the rest                                            (not per_group)
    K' = top_k / topk_group, rounded up; of equal votes the lowest index first
3.  `grouped_topk` again, in which the other experts are out: they are never selected and do not
    count for their group's score; the scores stay those over all experts

It is the MERRouter of vllm-ascend (pull request 1421) where K' = 1 and per_group.
"""

import numpy as np
from triselect.kernels.grouped_topk import reference as routing


def limit_experts(logits, top_k, *arguments):
    """Weights and experts ``(T, top_k)`` and the experts kept, ``(E,)`` bool.

    `arguments` are those of `grouped_topk`, then `budget` and `per_group`.
    """
    *router, budget, per_group = arguments
    num_expert_group, topk_group, *_ = router
    experts = logits.shape[1]
    _, chosen = routing.grouped_topk(logits, top_k, *router)
    votes = np.bincount(chosen.reshape(-1), minlength=experts)
    need = -(-top_k // topk_group)
    kept = most_voted(votes, budget, per_group, num_expert_group, need)
    return *routing.grouped_topk(logits, top_k, *router, allowed=kept), kept


def most_voted(votes, budget, per_group, groups, need):
    """The experts kept ``(E,)`` bool, by their votes ``(E,)``."""
    by_group = votes.reshape(groups, -1)
    kept = np.zeros(by_group.shape, bool)
    first = routing.first_largest(by_group, budget if per_group else need)
    np.put_along_axis(kept, first, True, axis=-1)
    kept = kept.reshape(-1)
    if not per_group:
        rest = routing.first_largest(np.where(kept, -1, votes), budget - kept.sum())
        kept[rest] = True
    return kept
