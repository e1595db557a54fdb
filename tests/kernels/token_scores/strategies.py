"""Drawn cases: hypothesis draws their structure, and a seed for the data."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ..backends import DTYPES, INDEX_DTYPES, SAME_VALUES
from .cases import KEY_DTYPES, Case, case, integers, paged, random, wild

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st


class Drawn(NamedTuple):
    case: Case
    layout: str


exact_data = st.sampled_from([integers, wild])  # their scores are exact in float32


@st.composite
def cases(
    draw: st.DrawFn,
    data: st.SearchStrategy | None = None,
    max_tokens: int = 120,
    max_chunk: int = 9,
) -> Drawn:
    batch = draw(st.integers(1, 3), label="batch")
    chunk = draw(st.integers(0, max_chunk) | st.just(1), label="queries")
    tokens = draw(st.integers(0, max_tokens), label="tokens")
    groups = draw(st.integers(0, 3), label="key heads, 0 if compressed")
    heads = (groups * draw(st.integers(1, 4), label="heads of a group"), groups)
    rng = np.random.default_rng(draw(st.integers(0, 2**16), label="seed"))
    drawn = case(
        int(rng.integers(2**31)),
        batch=batch,
        chunk=chunk,
        tokens=tokens,
        heads=heads if groups else None,
        dim=draw(st.integers(1, 40) | st.sampled_from([64, 80, 128, 130]), label="dim"),
        dtype=draw(st.sampled_from(DTYPES)),
        keys=None if groups else draw(st.sampled_from(KEY_DTYPES), label="keys"),
        data=random if data is None else draw(data),
    )
    index = draw(st.sampled_from(INDEX_DTYPES))

    def bounds(low: int, high: Tensor | int) -> Tensor:
        return torch.from_numpy(rng.integers(low, np.asarray(high) + 1, batch)).to(index)

    options = dict(drawn.options)
    if draw(st.booleans(), label="end"):
        options["end"] = bounds(0, tokens)
    if draw(st.booleans(), label="start"):
        options["start"] = bounds(0, options.get("end", tokens))
    if draw(st.booleans(), label="num_queries"):
        options["num_queries"] = bounds(0, chunk)
    drawn = drawn._replace(options=options)
    if draw(st.booleans(), label="paged"):
        size = draw(st.integers(1, 20), label="block size")
        drawn = paged(drawn, size, rng, draw(st.sampled_from([0.0, 0.3, 1.0]), label="holes"))
    return Drawn(drawn, draw(st.sampled_from([*SAME_VALUES, "heads first"])))


__all__ = ["Drawn", "cases", "exact_data", "given", "settings", "st"]
