"""Drawn rounds: hypothesis draws the structure, and a seed for branches and predictions."""

import numpy as np
import pytest
import torch

from triselect.ops.commit import RULES

from ..spawn.cases import KINDS
from .cases import Round, a_round

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st


@st.composite
def any_round(draw: st.DrawFn, most: int = 40) -> Round:
    """Of up to 4 sequences of `most` positions, and 6 branches."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16), label="seed"))
    length = draw(st.integers(1, most), label="length")
    kind = draw(st.sampled_from(list(KINDS)))
    case = a_round(
        rng,
        batch=draw(st.integers(0, 4)),
        length=length,
        window=draw(st.integers(1, length)),
        k=draw(st.integers(0, 5)),
        kind=kind,
        spawned=draw(st.sampled_from((0.0, 0.5, 1.0))),
        unfilled=draw(st.sampled_from((0.0, 0.1, 0.5, 1.0))),
        rule=draw(st.sampled_from(RULES)),
        ratio=draw(st.sampled_from((0.01, 0.1, 0.3, 0.5, 0.7, 1.0))),
        threshold=draw(st.sampled_from((0.0, 0.25, 0.5, 0.9, 1.0))),
        shift=draw(st.booleans()),
        released=draw(st.booleans()),
    )
    if draw(st.booleans(), label="worth is given"):
        worth = KINDS[kind](rng, tuple(case.extra.shape))
        return case.but(worth=torch.from_numpy(worth))
    return case


random_round = given(case=any_round())

__all__ = ["any_round", "random_round"]
