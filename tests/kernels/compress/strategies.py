"""Drawn cases: hypothesis draws their structure, and a seed for the data."""

from typing import NamedTuple

import pytest
import torch

from ..backends import DTYPES, SAME_VALUES
from .cases import VALUES, Case, case, random

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st


class Drawn(NamedTuple):
    case: Case
    dtype: torch.dtype
    layout: str


@st.composite
def cases(draw: st.DrawFn, data=random, max_tokens: int = 25) -> Drawn:
    groups = draw(st.integers(1, 4), label="groups")
    drawn = case(
        draw(st.integers(0, 2**16), label="seed"),
        tokens=draw(
            st.tuples(st.integers(0, max_tokens))
            | st.tuples(st.integers(0, 3), st.integers(0, 9))
            | st.just(()),
            label="tokens",
        ),
        heads=groups * draw(st.integers(1, 5), label="heads of a group"),
        groups=groups,
        dim=draw(st.integers(1, 24) | st.sampled_from([64, 80, 128]), label="dim"),
        numbers=draw(st.integers(1, 40) | st.sampled_from([64, 128, 130]), label="numbers"),
        bias=draw(st.booleans(), label="bias"),
        dtype=draw(st.sampled_from(DTYPES)),
        of_weight=draw(st.sampled_from([None, *DTYPES]), label="dtype of the weight"),
        data=data,
    )
    dtype = draw(st.sampled_from(VALUES), label="dtype of the values")
    return Drawn(drawn, dtype, draw(st.sampled_from([*SAME_VALUES, "heads first"])))


__all__ = ["Drawn", "cases", "given", "settings", "st"]
