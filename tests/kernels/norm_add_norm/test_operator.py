"""The operator among PyTorch's: opcheck, one compilation for all sizes, meta tensors, memory."""

import doctest
import importlib

import pytest
import torch

from triselect.ops.norm_add_norm import norm_add_norm

from ..backends import DTYPES, assert_bits, opcheck
from ..compiling import assert_compiles_once
from ..memory import growth
from .cases import PLACEMENTS, case, every_backend

every_placement = pytest.mark.parametrize("placement", PLACEMENTS)


@every_backend
@every_placement
def test_opcheck(backend, placement):
    for dtype in DTYPES:
        drawn = case(3, 5, 24, dtype=dtype, of_weights=(None, torch.float32))
        opcheck("norm_add_norm", (*drawn, 1e-5, placement), backend)


@every_backend
@every_placement
def test_one_compilation_for_every_number_of_tokens(backend, compiler, placement):
    weights = tuple(map(backend.put, case(1, 40)[2:]))

    def block(y, residual):
        r, z = norm_add_norm(y * 2, residual, *weights, placement=placement, backend=backend.name)
        return r - 1, z

    def inputs(tokens):
        return tuple(map(backend.put, case(tokens, 3, 40)[:2]))

    assert_compiles_once(block, inputs, compiler)


@every_placement
def test_both_overloads_agree(placement):
    args = (*case(30, 24), 1e-5, placement)
    operator = torch.ops.triselect.norm_add_norm
    assert_bits(operator.default(*args), operator.backend(*args, "auto"))


def test_meta_tensors_have_the_shapes_of_real_ones():
    for dtype in DTYPES:
        drawn = case(2, 3, 24, dtype=dtype)
        results = norm_add_norm(*(x.to("meta") for x in drawn)), norm_add_norm(*drawn)
        mine, theirs = ([(t.shape, t.dtype) for t in result] for result in results)
        assert mine == theirs


@every_backend
@every_placement
def test_memory_is_that_of_the_results(backend, placement):
    """Nothing in between is kept for more than a row at a time."""
    if backend.device != "cpu" or backend.name == "eager":
        pytest.skip("said of the C++ kernel")
    from triselect.ops import operator

    if not operator.has_kernel("norm_add_norm", "CPU"):
        pytest.skip("the C++ extension has no kernel for norm_add_norm")
    drawn = case(2000, 4096, dtype=torch.bfloat16)
    results = 2 * drawn.y.nbytes
    torch.use_deterministic_algorithms(False)  # which would fill what is there before
    assert growth(lambda: backend(*drawn, placement=placement)) < results + drawn.y.nbytes / 4


def test_the_example_runs():
    module = importlib.import_module("triselect.ops.norm_add_norm")
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
