"""Any two attentions on any backend are merged as by the reference."""

import pytest

from ..backends import DTYPES, SAME_VALUES
from .cases import assert_merged, every_backend, random_pair

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st


@every_backend
@given(
    shape=st.lists(st.integers(0, 12), max_size=3),
    dim=st.sampled_from([1, 3, 8, 40, 128]),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(SAME_VALUES),
    empty=st.sampled_from([0.0, 0.3, 1.0]),
    spread=st.sampled_from([0.0, 1.0, 20.0]),
    seed=st.integers(0, 2**16),
)
def test_random_attentions(backend, shape, dim, dtype, layout, empty, spread, seed):
    pair = random_pair(*shape, dim, dtype=dtype, empty=empty, spread=spread, seed=seed)
    if not shape:  # a number has no layout
        layout = "contiguous"
    assert_merged(backend(*pair, layout=layout), pair)
