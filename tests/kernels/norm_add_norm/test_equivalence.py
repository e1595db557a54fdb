"""Every backend does as the reference does: sizes of models and others, weights, layouts."""

import pytest
import torch

from ..backends import SAME_VALUES, assert_bits, every_dtype
from .cases import PLACEMENTS, Case, assert_close, case, every_backend

every_placement = pytest.mark.parametrize("placement", PLACEMENTS)


@every_backend
@every_dtype
@every_placement
@pytest.mark.parametrize("hidden", [1, 2, 3, 7, 16, 17, 31, 63, 64, 65, 129, 1000, 1025, 2049])
def test_sizes(backend, hidden, dtype, placement):
    drawn = case(5, hidden, dtype=dtype)
    assert_close(backend(*drawn, placement=placement), drawn, placement=placement)


@every_backend
@every_dtype
@every_placement
@pytest.mark.parametrize("hidden", [4608, 5120, 7680, 30001])
def test_sizes_of_models(backend, hidden, dtype, placement):
    drawn = case(3, hidden, dtype=dtype)
    assert_close(backend(*drawn, placement=placement), drawn, placement=placement)


@every_backend
@every_placement
@pytest.mark.parametrize("shape", [(24,), (1, 24), (2, 3, 24), (2, 1, 3, 24), (700, 96)])
def test_shapes(backend, shape, placement):
    drawn = case(*shape, dtype=torch.bfloat16)
    assert_close(backend(*drawn, placement=placement), drawn, placement=placement)


@every_backend
def test_no_rows(backend):
    for shape in ((0, 16), (3, 0, 16)):
        residual, normed = backend(*case(*shape, dtype=torch.float16))
        assert residual.shape == normed.shape == shape
        assert residual.dtype == normed.dtype == torch.float16


@every_backend
@every_dtype
@every_placement
@pytest.mark.parametrize("post", [None, torch.float32])
@pytest.mark.parametrize("following", [None, torch.float32])
def test_weights_of_float32_are_not_rounded(backend, post, following, dtype, placement):
    drawn = case(4, 70, dtype=dtype, of_weights=(post, following))
    assert_close(backend(*drawn, placement=placement), drawn, placement=placement)


@every_backend
@every_dtype
@every_placement
@pytest.mark.parametrize("eps", [1e-6, 1e-3, 0.5])
@pytest.mark.parametrize("sizes", [(1e-3, 1e-3), (100.0, 0.01), (0.01, 100.0)])
def test_eps_and_sizes(backend, eps, sizes, dtype, placement):
    """Of y and the residual: either may drown the other, and eps both."""
    drawn = case(6, 90, dtype=dtype, sizes=sizes)
    got = backend(*drawn, eps=eps, placement=placement)
    assert_close(got, drawn, eps, placement)


@every_backend
@every_placement
@pytest.mark.parametrize("layout", SAME_VALUES)
@pytest.mark.parametrize("shape", [(5, 40), (3, 4, 40), (40,)])
def test_layouts(backend, layout, shape, placement):
    """Also of the weights; the results are contiguous and the same to the bit."""
    drawn = case(*shape, dtype=torch.bfloat16)
    got = backend(*drawn, placement=placement, layout=layout)
    assert all(x.is_contiguous() for x in got)
    assert_bits(got, backend(*drawn, placement=placement))


@every_backend
@every_placement
def test_one_residual_for_all_rows(backend, placement):
    drawn = case(5, 40)
    same = drawn.residual[:1].expand(5, 40)
    got = backend(drawn.y, same, *drawn[2:], placement=placement)
    apart = Case(drawn.y, same.contiguous(), *drawn[2:])
    assert_bits(got, backend(*apart, placement=placement))
    assert_close(got, apart, placement=placement)
