"""Every backend within its error budget: sizes that models have, formats of weights, layouts."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ..backends import LAYOUTS, SAME_VALUES, every_dtype
from ..compress.cases import integers
from .cases import (
    Case,
    Exact,
    array,
    assert_h,
    assert_no_worse,
    assert_y,
    case,
    dequantised,
    downs,
    every_backend,
    every_format,
    exact,
    exact_down,
    exact_up,
    plain,
    ups,
)

SHAPES = {
    "a token of eight experts": {"counts": (0, 1) * 8, "hidden": 256, "inner": 96, "tokens": 1},
    "a few tokens": {"counts": (2, 0, 5, 1, 0, 4), "hidden": 264, "inner": 130, "tokens": 3},
    "many": {"counts": (70, 0, 33, 5, 129), "hidden": 136, "inner": 72, "padding": 3},
    "one expert": {"counts": (40,), "hidden": 144, "inner": 128},
    "sizes that nothing divides": {"counts": (3, 17, 1), "hidden": 131, "inner": 67, "tokens": 9},
    "one number of one expert": {"counts": (90,), "hidden": 1, "inner": 1},
    "from few to many": {"counts": (6, 7, 8, 9, 12, 13, 16, 17, 33), "hidden": 72, "inner": 40},
    "more experts than rows": {"counts": (0, 1, 0, 3) * 12, "hidden": 40, "inner": 24},
    "the largest is the last": {"counts": (0, 0, 50), "hidden": 56, "inner": 200, "tokens": 50},
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


class Budget(NamedTuple):
    """A case, what is exact of each half and of both, and what plain PyTorch makes of them."""

    case: Case
    h: Tensor
    exact: tuple[Exact, Exact, Exact]
    plain: tuple[Tensor, Tensor, Tensor]


@lru_cache(maxsize=1)  # for one backend after the other
def budget(shape: str, dtype: torch.dtype, weights: str) -> Budget:
    given = case(**SHAPES[shape], dtype=dtype, weights=weights)
    of_up = exact_up(given)
    h = torch.from_numpy(of_up.values).to(dtype)
    gate_up = dequantised(given.gate_up, given.gate_up_scale, dtype)
    down = dequantised(given.down, given.down_scale, dtype)
    halves = (given.x, gate_up, None), (h, None, down), (given.x, gate_up, down)
    return Budget(
        given,
        h,
        (of_up, exact_down(given, array(h)), exact(given)),
        tuple(plain(*half, given.offsets) for half in halves),
    )


@every_backend
@every_dtype
@every_format
@every_shape
def test_no_worse_than_plain_pytorch(backend, dtype, weights, shape):
    given, h, exact, theirs = budget(shape, dtype, weights)
    assert_no_worse(ups(backend)(*given.up), theirs[0], exact[0], given.used)
    assert_no_worse(downs(backend)(*given.project(h)), theirs[1], exact[1], given.used)
    # Of both, the largest depends on how each h was rounded, which is a matter of luck.
    assert_no_worse(backend(*given), theirs[2], exact[2], given.used, mean_alone=True)


@every_backend
@every_dtype
@every_format
@every_shape
def test_products_that_are_exact(backend, dtype, weights, shape):
    given = case(**SHAPES[shape], dtype=dtype, weights=weights, data=integers)
    assert_h(ups(backend)(*given.up), given)
    h = torch.arange(given.x.shape[0] * given.down.shape[2]).view(-1, given.down.shape[2])
    h = (h % 5 - 2).to(dtype)
    assert_y(downs(backend)(*given.project(h)), given, h)


EMPTY = {
    "no rows": {"counts": (0, 0, 0)},
    "no rows of one expert": {"counts": (0,)},
    "no rows of some tokens": {"counts": (0, 0), "tokens": 4},
    "padding alone": {"counts": (0, 0), "padding": 5},
    "padding of some tokens": {"counts": (0, 0), "padding": 5, "tokens": 3},
}


@every_backend
@every_format
@pytest.mark.parametrize("empty", EMPTY)
def test_nothing_to_do(backend, weights, empty):
    dtype = torch.bfloat16
    given = case(**EMPTY[empty], dtype=dtype, weights=weights)
    for got, width in ((backend(*given), 12), (ups(backend)(*given.up), 10)):
        assert (got.shape, got.dtype) == ((len(given.x), width), dtype)
        assert not got.any()


@every_backend
def test_no_rows_to_read(backend):
    given = case(counts=(0, 0), tokens=1)
    assert backend(given.rows[:0], *given[1:]).shape == (0, 12)


@every_backend
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [None, 8])
def test_layouts(backend, dtype, layout, tokens):
    given = case(counts=(3, 0, 5), tokens=tokens, dtype=dtype, data=integers)
    store = LAYOUTS[layout]
    of = given._replace(rows=given.rows[:1].expand_as(given.rows))
    assert_h(ups(backend)(store(given.rows), *given.up[1:]), of if layout == "expanded" else given)
    h = given.x[:, :10]
    of = h[:1].expand_as(h) if layout == "expanded" else h
    assert_y(downs(backend)(store(h), *given.project(h)[1:]), given, of)


@every_backend
@pytest.mark.parametrize("layout", [name for name in SAME_VALUES if name != "transposed"])
def test_layouts_of_integers(backend, layout):
    given = case(tokens=7, padding=2, data=integers)
    other = given._replace(
        offsets=LAYOUTS[layout](given.offsets), source=LAYOUTS[layout](given.source)
    )
    assert_h(ups(backend)(*other.up), given)
    h = given.x[:, :10]
    assert_y(downs(backend)(*other.project(h)), given, h)


@every_backend
@every_format
def test_offsets_beyond_32_bits(backend, weights):
    """Rows 2**28 numbers apart, and experts: NumPy's memory costs nothing until it is written."""
    if backend.device != "cpu":
        pytest.skip("copies to a device are contiguous")
    given = case(counts=(2, 0, 0, 0, 0, 0, 0, 0, 7), inner=4, weights=weights, data=integers)
    far = torch.from_numpy(np.empty(9 * 2**28, np.float32)).as_strided((9, 12), (2**28, 1))
    far.copy_(given.rows)
    assert_h(ups(backend)(far, *given.up[1:]), given)
    h = given.x[:, :4]
    memory = torch.from_numpy(np.empty(9 * 2**28 * given.down.itemsize, np.uint8))
    part = memory.view(given.down.dtype).view(9, 2**26, 4)[:, 5:17]
    part.copy_(given.down)
    assert_y(downs(backend)(h, part, given.offsets, given.down_scale), given, h)
