"""Drawn steps: hypothesis draws their structure, and a seed for the data."""

from typing import NamedTuple

import pytest

from ..backends import DTYPES, INDEX_DTYPES, SAME_VALUES
from .cases import KINDS, Step, random_step, spoiled

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st


class Case(NamedTuple):
    kind: str
    step: Step
    layout: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(KINDS))
    tokens = draw(st.integers(1, 150), label="tokens")
    step = random_step(
        draw(st.integers(0, 2**16), label="seed"),
        batch=draw(st.integers(1, 2), label="batch"),
        queries=draw(st.integers(1, 5), label="queries"),
        groups=draw(st.integers(1, 2), label="groups"),
        shared=draw(st.sampled_from([1, 2, 3, 4, 7]), label="heads of a group"),
        dim=draw(st.sampled_from([1, 2, 7, 16, 40, 64]), label="dim"),
        tokens=tokens,
        selected=draw(st.integers(0, 40), label="selected"),
        num_initial=draw(st.sampled_from([0, 1, 5, 20]), label="num_initial"),
        size=draw(st.sampled_from([None, 1, 5, 16]), label="tokens of a block"),
        holes=draw(st.sampled_from([0.0, 0.2, 1.0]), label="holes"),
        rotate=draw(st.booleans(), label="rotate"),
        dtype=draw(st.sampled_from(DTYPES)),
        indices=draw(st.sampled_from(INDEX_DTYPES)),
        spread=draw(st.sampled_from([0.1, 1.0, 4.0]), label="spread"),
        repeated=draw(st.booleans(), label="repeated entries"),
    )
    if draw(st.booleans(), label="no end"):
        step = step._replace(end=None, start=step.start if kind == "selected" else None)
    layout = draw(st.sampled_from([*SAME_VALUES, "heads first"]))
    return Case(kind, spoiled(kind, step), layout)


random_case = given(case=cases())
