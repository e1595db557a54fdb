"""Drawn budgets for the drawn routers of grouped_topk."""

from typing import NamedTuple

from ..grouped_topk.strategies import Case, cases, random, tied  # skips without hypothesis
from .cases import budgets

from hypothesis import given  # isort: skip
from hypothesis import strategies as st  # isort: skip


class Limited(NamedTuple):
    case: Case
    budget: int
    per_group: bool


@st.composite
def limited_cases(draw: st.DrawFn, data=random, max_tokens: int = 40) -> Limited:
    case = draw(cases(data, max_tokens))
    per_group = draw(st.booleans(), label="per_group")
    least, most = budgets(case.options, case.logits.shape[1], per_group)
    return Limited(case, draw(st.integers(least, most), label="budget"), per_group)


random_case = given(drawn=limited_cases(random))
tied_case = given(drawn=limited_cases(tied))

__all__ = ["Limited", "limited_cases", "random_case", "tied_case"]
