"""Drawn cases: hypothesis draws their structure, and a seed for the data."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from triselect.ops.token_confidence import SCORES

from ..backends import DTYPES, SAME_VALUES
from .cases import KINDS, draws, logits_of

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st


class Case(NamedTuple):
    logits: Tensor
    options: dict[str, Any]
    layout: str


@st.composite
def cases(draw: st.DrawFn, max_tokens: int = 1500) -> Case:
    rows = draw(st.integers(0, 4), label="rows")
    tokens = draw(st.integers(2, 70) | st.integers(2, max_tokens), label="tokens")
    rng = np.random.default_rng(draw(st.integers(0, 2**16), label="seed of the data"))
    kinds = draw(st.lists(st.sampled_from(list(KINDS)), min_size=rows, max_size=rows))
    dtype = draw(st.sampled_from(DTYPES))
    each = [logits_of(rng, 1, tokens, kind, dtype) for kind in kinds]
    logits = torch.cat(each) if each else torch.empty(0, tokens, dtype=dtype)
    options: dict[str, Any] = {
        "score": draw(st.sampled_from(SCORES)),
        "temperature": draw(st.just(1.0) | st.floats(0.1, 10.0)),
        "mask_token": draw(st.just(-1) | st.integers(0, tokens + 3), label="mask token"),
    }
    if draw(st.booleans(), label="a temperature for each row"):
        options["temperature"] = torch.from_numpy(rng.uniform(0.1, 10, rows)).float()
    if draw(st.booleans(), label="some rows"):
        options["rows"] = torch.from_numpy(rng.random(rows) < 0.6)
    if draw(st.booleans(), label="drawn"):
        options |= draws(rng, rows)
    return Case(logits, options, draw(st.sampled_from(SAME_VALUES)))


random_case = given(case=cases())

__all__ = ["Case", "cases", "random_case"]
