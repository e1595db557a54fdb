"""Drawn selections: hypothesis draws their structure, and a seed for the data or the data too."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ..backends import DTYPES, INDEX_DTYPES, SAME_VALUES
from .cases import KINDS, VALUES, scores_of

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st


class Case(NamedTuple):
    scores: Tensor
    k: int
    proximity: int
    start: Tensor | None
    end: Tensor | None
    layout: str

    def options(self) -> dict:
        return {"proximity": self.proximity, "start": self.start, "end": self.end}


@st.composite
def ways(draw: st.DrawFn, scores: Tensor) -> Case:
    """What to select of the scores, and how they are stored."""
    rows, tokens = scores.shape
    k = draw(st.integers(1, 20) | st.integers(1, tokens + 5), label="k")
    proximity = draw(st.just(0) | st.integers(1, 9) | st.integers(0, tokens + 5), label="proximity")

    def bounds(low: list[int]) -> list[int]:
        return [draw(st.integers(least, tokens)) for least in low]

    nothing = [0] * rows
    low = bounds(nothing) if draw(st.booleans(), label="has a start") else None
    high = bounds(low or nothing) if draw(st.booleans(), label="has an end") else None
    start, end = (
        None if b is None else torch.tensor(b, dtype=draw(st.sampled_from(INDEX_DTYPES)))
        for b in (low, high)
    )
    return Case(scores, k, proximity, start, end, draw(st.sampled_from(SAME_VALUES)))


@st.composite
def any_scores(draw: st.DrawFn, max_tokens: int = 400) -> Case:
    rows = draw(st.integers(0, 4), label="rows")
    tokens = draw(st.integers(0, max_tokens), label="tokens")
    kind = draw(st.sampled_from(list(KINDS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16), label="seed"))
    return draw(ways(scores_of(rng, rows, tokens, kind, draw(st.sampled_from(DTYPES)))))


@st.composite
def ties(draw: st.DrawFn, max_tokens: int = 40) -> Case:
    """A row of a few different values, all of them drawn."""
    values = draw(st.lists(st.sampled_from(VALUES), max_size=max_tokens), label="scores")
    return draw(ways(torch.tensor([values], dtype=draw(st.sampled_from(DTYPES)))))


random_case = given(case=any_scores())
tied_case = given(case=ties())

__all__ = ["Case", "any_scores", "random_case", "tied_case", "ties"]
