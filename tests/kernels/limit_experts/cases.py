"""What the tests of limit_experts feed it, and what they hold against the reference."""

from typing import Any

import numpy as np
import pytest
from torch import Tensor
from triselect.kernels.limit_experts import reference

import triselect

from ..backends import over_backends, stored
from ..grouped_topk.cases import Setting
from ..grouped_topk.cases import route as grouped_topk
from ..grouped_topk.compare import Keys, assert_same_routing, complete

limit = stored(triselect.limit_experts)
OPERATORS = ("limit_experts", "grouped_topk")
every_backend = over_backends(limit, *OPERATORS)
every_trained_backend = over_backends(limit, *OPERATORS, "grouped_topk_backward")
every_scope = pytest.mark.parametrize("per_group", [True, False], ids=["per-group", "overall"])


def budgets(options: dict[str, Any], experts: int, per_group: bool) -> tuple[int, int]:
    """The least and the largest budget that a router can have."""
    groups = options.get("num_expert_group", 1)
    need = -(-options["top_k"] // (options.get("topk_group") or groups))
    return (need, experts // groups) if per_group else (need * groups, experts)


def some_budgets(setting: Setting, per_group: bool) -> list[int]:
    """The least, one more, the middle, one less than all, all."""
    low, high = budgets(setting.options, setting.experts, per_group)
    inner = {low, low + 1, (low + high) // 2, high - 1, high}
    return sorted(budget for budget in inner if low <= budget <= high)


def assert_limited(
    backend,
    got: triselect.ops.LimitedRouting,
    logits: Tensor,
    budget: int,
    per_group: bool,
    options: dict[str, Any],
    *,
    clear_share: float = 0.9,
    layout: str = "contiguous",
) -> None:
    """`got` is what the reference means.

    Votes are those of the same backend's `grouped_topk`, which tests of its own hold against the
    reference: where rounding leaves a token's choice open, so does it a vote. Given the votes, what
    is kept is exact, and given what is kept, so is the routing where it is clear.
    """
    o = complete(options)
    groups, experts = o["num_expert_group"], logits.shape[1]
    chosen = backend._replace(function=grouped_topk)(logits, layout=layout, **options).experts
    votes = np.bincount(chosen.numpy().ravel(), minlength=experts)
    need = -(-options["top_k"] // o["topk_group"])
    kept = reference.most_voted(votes, budget, per_group, groups, need)
    np.testing.assert_array_equal(got.kept, kept)
    assert_same_routing(got[:2], logits, options, clear_share=clear_share, allowed=kept)

    x = logits.detach().float().numpy()
    if len(x) and Keys(x.astype(np.float64), o).clear().all():  # no vote is open
        everything = reference.limit_experts(x, *in_order(options), budget, per_group)
        np.testing.assert_array_equal(kept, everything[2])


def in_order(options: dict[str, Any]) -> tuple[Any, ...]:
    """`top_k` and the options of a router, as the reference of limit_experts takes them."""
    o = complete(options)
    top_k = o.pop("top_k")
    return top_k, *o.values()
