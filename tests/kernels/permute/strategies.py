"""Drawn assignments: hypothesis draws their structure, and a seed for the data."""

from typing import NamedTuple

import numpy as np
import pytest
from torch import Tensor

from ..backends import INDEX_DTYPES, SAME_VALUES
from .cases import SKEWS, assignments

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st


class Case(NamedTuple):
    experts: Tensor
    num_experts: int
    layout: str


@st.composite
def cases(draw: st.DrawFn, max_tokens: int = 300) -> Case:
    num_experts = draw(
        st.integers(1, 40) | st.sampled_from([63, 64, 65, 100, 128, 257, 1000, 4096]),
        label="num_experts",
    )
    tokens = draw(st.integers(0, max_tokens), label="tokens")
    k = draw(st.integers(1, 10), label="top_k")
    skew = draw(st.sampled_from(SKEWS))
    padding = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]), label="padding")
    dtype = draw(st.sampled_from(INDEX_DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**16), label="seed"))
    experts = assignments(rng, tokens, k, num_experts, skew, padding, dtype)
    return Case(experts, num_experts, draw(st.sampled_from(SAME_VALUES)))


random_case = given(case=cases())

__all__ = ["Case", "cases", "random_case"]
