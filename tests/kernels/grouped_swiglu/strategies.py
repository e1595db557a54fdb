"""Drawn cases: hypothesis draws their structure, and a seed for the data."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ..backends import DTYPES, SAME_VALUES
from ..compress.cases import integers
from .cases import FORMATS, Case, case

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st


class Drawn(NamedTuple):
    case: Case
    h: Tensor  # of small integers, one row for each of the result
    layout: str


@st.composite
def cases(draw: st.DrawFn) -> Drawn:
    """Integers, so that products are exact: how they are rounded is not what this is about."""
    seed = draw(st.integers(0, 2**16), label="seed")
    drawn = case(
        seed,
        counts=draw(st.lists(st.integers(0, 9), min_size=1, max_size=6), label="counts"),
        hidden=draw(st.integers(1, 40) | st.sampled_from([64, 127, 128, 200, 264]), label="hidden"),
        inner=draw(st.integers(1, 24) | st.sampled_from([63, 64, 66, 130]), label="inner"),
        padding=draw(st.integers(0, 5), label="padding"),
        tokens=draw(st.none() | st.integers(1, 12), label="tokens"),
        dtype=draw(st.sampled_from(DTYPES)),
        weights=draw(st.sampled_from([*FORMATS]), label="weights"),
        data=integers,
    )
    shape = (len(drawn.x), drawn.down.shape[2])
    h = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed))
    return Drawn(drawn, h.to(drawn.rows.dtype), draw(st.sampled_from(SAME_VALUES), label="layout"))


__all__ = ["Drawn", "cases", "given", "st"]
