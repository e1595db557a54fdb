"""Every backend compresses as the reference does: sizes that models have, layouts, offsets."""

import numpy as np
import pytest
import torch

from ..backends import LAYOUTS, every_dtype
from .cases import (
    Case,
    assert_compressed,
    assert_exact,
    case,
    every_backend,
    integers,
)

SHAPES = {
    "keys of a step": {"tokens": (1,), "heads": 8, "groups": 8, "dim": 128, "numbers": 128},
    "queries of a step": {"tokens": (1,), "heads": 32, "groups": 8, "dim": 128, "numbers": 128},
    "queries of a chunk": {"tokens": (100,), "heads": 28, "groups": 4, "dim": 64, "numbers": 32},
    "a batch": {"tokens": (3, 40), "heads": 6, "groups": 3, "dim": 80, "numbers": 100},
    "many tokens": {"tokens": (2100,), "heads": 2, "groups": 1, "dim": 16, "numbers": 16},
    "more numbers than went in": {"tokens": (5,), "numbers": 300},
    "one number": {"tokens": (5,), "heads": 1, "groups": 1, "dim": 1, "numbers": 1},
    "no dimension of tokens": {"tokens": ()},
    "three of them": {"tokens": (2, 3, 4)},
    "no tokens": {"tokens": (0,)},
    "no sequences": {"tokens": (0, 5)},
}


@every_backend
@every_dtype
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(backend, sizes, dtype):
    drawn = case(**sizes, dtype=dtype)
    for values in (dtype, torch.float8_e4m3fn if dtype is torch.float16 else torch.int8):
        assert_compressed(backend(*drawn, dtype=values), drawn)


@every_backend
@every_dtype
@pytest.mark.parametrize("of_weight", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_compressor_of_another_dtype(backend, dtype, of_weight):
    drawn = case(tokens=(50,), dtype=dtype, of_weight=of_weight)
    got = backend(*drawn)
    assert got.values.dtype is dtype
    assert_compressed(got, drawn)


@every_backend
@pytest.mark.parametrize("layout", [*LAYOUTS, "heads first"])
@pytest.mark.parametrize("tokens", [(45,), (3, 15), (2, 3, 5)], ids=str)
def test_layouts(backend, layout, tokens):
    drawn = case(tokens=tokens, numbers=20, data=integers)
    got = backend(*drawn, layout=layout)
    if layout == "expanded":
        drawn = Case(*(t[:1].expand_as(t) for t in drawn))
    assert_exact(got, drawn)


@every_backend
def test_offsets_beyond_32_bits(backend):
    """Tokens 2**28 elements apart; NumPy's memory costs nothing until it is written."""
    if backend.device != "cpu":
        pytest.skip("copies to a device are contiguous")
    drawn = case(tokens=(20,), data=integers)
    far = torch.from_numpy(np.empty(20 * 2**28, np.float32))
    far = far.as_strided(drawn.x.shape, (2**28, 8, 1))
    far.copy_(drawn.x)
    assert_exact(backend(far, *drawn[1:]), drawn)
