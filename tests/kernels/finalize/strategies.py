"""Drawn cases: hypothesis draws their structure, and a seed for the data."""

from typing import NamedTuple

import pytest
import torch

from ..backends import DTYPES, SAME_VALUES
from .cases import Case, case, random

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st


class Drawn(NamedTuple):
    case: Case
    layout: str


@st.composite
def cases(draw: st.DrawFn, data=random, max_tokens: int = 25, max_hidden: int = 70) -> Drawn:
    dtype = draw(st.sampled_from(DTYPES))
    drawn = case(
        draw(st.integers(0, 2**16), label="seed"),
        tokens=draw(st.integers(0, max_tokens), label="tokens"),
        top_k=draw(st.integers(1, 18), label="top_k"),
        hidden=draw(st.integers(0, max_hidden), label="hidden"),
        experts=draw(st.integers(1, 9), label="experts"),
        padding=draw(st.sampled_from([0.0, 0.3, 1.0]), label="padding"),
        bias=draw(st.sampled_from([None, torch.float32, dtype]), label="bias"),
        residuals=draw(st.integers(0, 2), label="residuals"),
        dtype=dtype,
        data=data,
    )
    return Drawn(drawn, draw(st.sampled_from(SAME_VALUES), label="layout"))


__all__ = ["Drawn", "cases", "given", "settings", "st"]
