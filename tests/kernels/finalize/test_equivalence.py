"""Every backend does as the reference does: sizes that models have, layouts, offsets."""

import numpy as np
import pytest
import torch

from ..backends import LAYOUTS, every_dtype, every_index_dtype
from .cases import Case, assert_exact, assert_finalized, case, every_backend, integers

SHAPES = {
    "a token of Pangu Pro": {"tokens": 1, "top_k": 8, "hidden": 5120, "experts": 64},
    "tokens of Pangu Pro": {"tokens": 5, "top_k": 8, "hidden": 5120, "experts": 64},
    "more columns than a thread adds up at a time": {"tokens": 2, "hidden": 13001},
    "many tokens": {"tokens": 100, "top_k": 6, "hidden": 40},
    "many experts of each": {"tokens": 5, "top_k": 23, "hidden": 100, "experts": 40},
    "one of each": {"tokens": 1, "top_k": 1, "hidden": 1, "experts": 1},
    "no assignments": {"tokens": 9, "padding": 1.0},
    "no tokens": {"tokens": 0},
    "nothing in a row": {"hidden": 0},
}


@every_backend
@every_dtype
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(backend, sizes, dtype):
    for more in ({}, {"bias": dtype, "residuals": 1}, {"bias": torch.float32, "residuals": 2}):
        drawn = case(**sizes, **more, dtype=dtype)
        assert_finalized(backend(*drawn), drawn)


@every_backend
@pytest.mark.parametrize("top_k", range(20))
def test_every_k(backend, top_k):
    """None too: then only residuals are left."""
    drawn = case(top_k=top_k, bias=torch.float32, residuals=1, data=integers)
    assert_exact(backend(*drawn), drawn)


@every_backend
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout):
    drawn = case(tokens=1 if layout == "expanded" else 9, bias=torch.float32, residuals=2)
    got = backend(*drawn, layout=layout)
    if layout == "expanded":
        drawn = Case(*(x[:1].expand_as(x) for x in drawn))
    assert_finalized(got, drawn)


@every_backend
def test_residuals_and_weights_of_one_row(backend):
    """A stride of zero, as of a constant."""
    drawn = case(residuals=2, data=integers)
    drawn = drawn._replace(
        weights=drawn.weights[:1].expand(7, 4), residual2=drawn.residual2[:1].expand(7, 24)
    )
    assert_exact(backend(*drawn), drawn)


@every_backend
@every_index_dtype
def test_experts_of_either_width(backend, dtype):
    drawn = case(bias=torch.float32)
    drawn = drawn._replace(experts=drawn.experts.to(dtype))
    assert_finalized(backend(*drawn), drawn)


@every_backend
def test_offsets_beyond_32_bits(backend):
    """Rows 2**28 elements apart; NumPy's memory costs nothing until it is written."""
    if backend.device != "cpu":
        pytest.skip("copies to a device are contiguous")
    drawn = case(tokens=5, data=integers)
    far = torch.from_numpy(np.empty(20 * 2**28, np.float32))
    rows = far.as_strided(drawn.rows.shape, (2**28, 1))
    rows.copy_(drawn.rows)
    assert_exact(backend(rows, *drawn[1:]), drawn)
