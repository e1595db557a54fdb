"""What grouped_topk refuses is refused alike; a budget is named with what it must be."""

import re

import pytest
import torch

import triselect

from ..grouped_topk.test_errors import BAD as BAD_ROUTING
from ..grouped_topk.test_errors import LOGITS

GROUPED = {"top_k": 6, "num_expert_group": 4, "topk_group": 2}
BAD = {
    "budget-float": ({"budget": 6.0}, TypeError, "budget must be an int, got float"),
    "budget-bool": ({"budget": True}, TypeError, "budget must be an int, got bool"),
    "budget-none": ({"budget": None}, TypeError, "budget must be an int, got NoneType"),
    "per_group": ({"per_group": 1}, TypeError, "per_group must be a bool, got int"),
    "budget-1": (
        {"budget": 1},
        ValueError,
        "budget must be between 2 and the 12 experts of a group, got 1: every group must keep the "
        "2 that top_k = 2 may take of it",
    ),
    "budget-13": (
        {"budget": 13},
        ValueError,
        "budget must be between 2 and the 12 experts of a group, got 13",
    ),
    "budget-negative": ({"budget": -1}, ValueError, "budget must be between 2 and the 12"),
    "group-2": (
        GROUPED | {"budget": 2},
        ValueError,
        "budget must be between 3 and the 3 experts of a group, got 2",
    ),
    "group-4": ({"budget": 4} | GROUPED, ValueError, "budget must be between 3 and the 3"),
    "rounded up": (
        GROUPED | {"top_k": 5, "budget": 2},
        ValueError,
        "every group must keep the 3 that top_k = 5 may take of it",
    ),
    "overall-7": (
        GROUPED | {"top_k": 4, "budget": 7, "per_group": False},
        ValueError,
        "budget must be between 8 and the 12 experts of all, got 7: every group must keep the 2",
    ),
    "overall-13": (
        GROUPED | {"top_k": 4, "budget": 13, "per_group": False},
        ValueError,
        "budget must be between 8 and the 12 experts of all, got 13",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (BAD | BAD_ROUTING).values(),
    ids=(BAD | BAD_ROUTING).keys(),
)
def test_refused_by_name(arguments, error, message, backend):
    arguments = {"logits": LOGITS, "top_k": 2, "budget": 6, "backend": backend} | arguments
    with pytest.raises(error, match=re.escape(message)):
        triselect.limit_experts(**arguments)


def test_the_options_are_those_of_grouped_topk_and_one_more():
    options = triselect.grouped_topk.__kwdefaults__ | {"per_group": True}
    assert triselect.limit_experts.__kwdefaults__ == options


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'budgets'"):
        triselect.limit_experts(LOGITS, 2, 6, budgets=3)


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        triselect.limit_experts(LOGITS, 2, 6, False)


def test_the_smallest_and_largest_budgets_allowed():
    for budget in (2, 12):
        for per_group in (True, False):
            kept = triselect.limit_experts(LOGITS, 2, budget, per_group=per_group).kept
            assert kept.sum() == budget


def test_an_unknown_backend_is_refused_with_a_gradient_too():
    with pytest.raises(ValueError, match="backend must be one of"):
        triselect.limit_experts(LOGITS.clone().requires_grad_(), 2, 6, backend="cuda")


def test_a_bad_budget_is_named_while_tracing():
    compiled = torch.compile(
        lambda logits: triselect.limit_experts(logits, 2, 1), backend="eager", fullgraph=True
    )
    with pytest.raises(Exception, match="budget must be between 2 and the 12"):
        compiled(LOGITS)
