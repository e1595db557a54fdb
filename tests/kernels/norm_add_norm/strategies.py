"""Drawn cases: hypothesis draws their structure, and a seed for the data."""

from typing import NamedTuple

import pytest
import torch

from ..backends import DTYPES, SAME_VALUES
from .cases import PLACEMENTS, Case, case

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = [1e-4, 0.1, 1.0, 30.0]


class Drawn(NamedTuple):
    case: Case
    eps: float
    placement: str
    layout: str


@st.composite
def cases(draw: st.DrawFn, longest: int = 300) -> Drawn:
    dtype = draw(st.sampled_from(DTYPES))
    rows = draw(
        st.tuples(st.integers(0, 9)) | st.tuples(st.integers(0, 3), st.integers(0, 4)),
        label="rows",
    )
    hidden = draw(st.integers(1, longest) | st.sampled_from([64, 128, 256]), label="hidden")
    drawn = case(
        *rows,
        hidden,
        seed=draw(st.integers(0, 2**16), label="seed"),
        dtype=dtype,
        of_weights=draw(st.tuples(*[st.sampled_from([None, torch.float32])] * 2)),
        sizes=draw(st.tuples(*[st.sampled_from(SIZES)] * 2), label="sizes of y and residual"),
    )
    return Drawn(
        drawn,
        draw(st.sampled_from([1e-6, 1e-5, 0.01, 1.0]), label="eps"),
        draw(st.sampled_from(PLACEMENTS)),
        draw(st.sampled_from(SAME_VALUES)),
    )


__all__ = ["Drawn", "cases", "given", "settings"]
