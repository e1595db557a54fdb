"""The Triton kernel: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run it too (test_equivalence, test_properties).
"""

from unittest import mock

import numpy as np
import pytest
import torch

from triselect.ops.norm_add_norm import norm_add_norm

from ..backends import LAYOUTS, Backend, assert_bits, every_dtype
from ..launches import launches, on_gpu
from .cases import PLACEMENTS, Case, assert_close, case, laid_out

# NumPy, the interpreter's engine, warns about infinities and NaN, which are meant to go through.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

interpreted = Backend(laid_out, "triton", "cpu")
on_device = Backend(laid_out, "triton", "cuda")
every_placement = pytest.mark.parametrize("placement", PLACEMENTS)


@pytest.mark.interpret
@every_dtype
@every_placement
@pytest.mark.parametrize("shape", [(1,), (3, 2), (2, 2, 7), (4, 64), (2, 65), (2, 5120), (0, 4)])
def test_shapes(shape, dtype, placement):
    drawn = case(*shape, dtype=dtype)
    assert_close(interpreted(*drawn, placement=placement), drawn, placement=placement)


@pytest.mark.interpret
@every_dtype
@every_placement
@pytest.mark.parametrize("hidden", [31, 32, 33, 64, 100])
def test_rows_too_long_for_registers(hidden, dtype, placement):
    from triselect.kernels.norm_add_norm import triton

    drawn = case(3, hidden, dtype=dtype)
    with mock.patch.object(triton, "LONGEST", 32):
        assert_close(interpreted(*drawn, placement=placement), drawn, placement=placement)


@pytest.mark.interpret
@every_placement
@pytest.mark.parametrize("of_weights", [(torch.float32, None), (None, torch.float32)])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_weights_and_eps(of_weights, eps, placement):
    drawn = case(5, 40, dtype=torch.bfloat16, of_weights=of_weights, sizes=(0.1, 2.0))
    assert_close(interpreted(*drawn, eps=eps, placement=placement), drawn, eps, placement)


@pytest.mark.interpret
@every_placement
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
@pytest.mark.parametrize("shape", [(5, 24), (3, 4, 24)])
def test_layouts(layout, shape, placement):
    drawn = case(*shape, dtype=torch.float16)
    got = interpreted(*drawn, placement=placement, layout=layout)
    assert_bits(got, interpreted(*drawn, placement=placement))


@pytest.mark.interpret
@pytest.mark.parametrize("longest", [16, 64])
def test_what_is_not_finite_stays_in_its_row(longest):
    from triselect.kernels.norm_add_norm import triton

    drawn = case(4, 40)
    with mock.patch.object(triton, "LONGEST", longest):
        expected = interpreted(*drawn)
        drawn.y[1, 3] = torch.nan
        drawn.residual[2, 5] = torch.inf
        got = interpreted(*drawn)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine[1].isnan().all()
        assert not mine[2, 5].isfinite()
        assert_bits(mine[[0, 3]], theirs[[0, 3]])


@pytest.mark.interpret
def test_a_row_of_zeros_without_eps():
    """0 / 0 is NaN everywhere, as in PyTorch."""
    ones = torch.ones(8)
    got = interpreted(torch.zeros(1, 8), torch.ones(1, 8), ones, ones, eps=0.0)
    assert got.residual.isnan().all()
    assert got.normed.isnan().all()


@pytest.mark.interpret
@every_placement
def test_offsets_beyond_32_bits(placement):
    """Rows 2**28 elements apart; NumPy's memory costs nothing until it is written."""
    drawn = case(20, 24)
    far = torch.from_numpy(np.empty(20 * 2**28, np.float32)).as_strided((20, 24), (2**28, 1))
    for place in (0, 1):
        far.copy_(drawn[place])
        stored = Case(*(far if i == place else x for i, x in enumerate(drawn)))
        got = norm_add_norm(*stored, placement=placement, backend="triton")
        assert_bits(got, interpreted(*drawn, placement=placement))


@pytest.mark.interpret
def test_no_rows_launch_nothing(monkeypatch):
    from triselect.kernels.norm_add_norm import triton

    monkeypatch.setattr(triton, "norm_add_norm_rows", None)
    interpreted(*case(3, 0, 8))


try:
    from .strategies import Drawn, cases
except pytest.skip.Exception:  # hypothesis is not installed
    pass
else:
    from hypothesis import given, settings

    @pytest.mark.interpret
    @given(drawn=cases(longest=70))
    @settings(max_examples=25)
    def test_random_numbers(drawn: Drawn):
        numbers, eps, placement, layout = drawn
        got = interpreted(*numbers, eps=eps, placement=placement, layout=layout)
        assert_close(got, numbers, eps, placement)


@pytest.mark.gpu
@every_dtype
@every_placement
@pytest.mark.parametrize("hidden", [4608, 5120, 7680, 16384, 16385, 50000])
@pytest.mark.parametrize("tokens", [1, 1000])
def test_sizes_of_models(tokens, hidden, dtype, placement):
    drawn = case(tokens, hidden, dtype=dtype)
    assert_close(on_device(*drawn, placement=placement), drawn, placement=placement)


@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [7680, 50000])
def test_one_launch(hidden):
    drawn = case(16, hidden, dtype=torch.bfloat16)
    assert launches(norm_add_norm, *drawn) == ["norm_add_norm_rows"]


@pytest.mark.gpu
def test_a_captured_graph_norms_new_rows():
    drawn = [on_gpu(x) for x in case(16, 5120)]
    norm_add_norm(*drawn)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = norm_add_norm(*drawn)
    for seed in range(1, 4):
        for mine, new in zip(drawn, case(16, 5120, seed=seed), strict=True):
            mine.copy_(new)
        graph.replay()
        assert_bits(got, norm_add_norm(*drawn))
