"""The Triton kernel: small cases in the interpreter, and what only a GPU shows."""

import pytest
import torch

from triselect.ops.merge import merge

from ..backends import LAYOUTS, Backend, assert_bits, every_dtype
from ..launches import launches, on_gpu
from .cases import assert_merged, merged, random_pair

# NumPy, the interpreter's engine, warns about infinities and NaN, which are meant to go through.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

interpreted = Backend(merged, "triton", "cpu")
on_device = Backend(merged, "triton", "cuda")


@pytest.mark.interpret
@every_dtype
@pytest.mark.parametrize("shape", [(1,), (3, 1), (100, 3), (2, 30, 80), (3, 3000), (0, 4)])
def test_shapes(shape, dtype):
    """Several programs, several rows to a program, rows that are no power of two."""
    pair = random_pair(*shape, dtype=dtype)
    assert_merged(interpreted(*pair), pair)


@pytest.mark.interpret
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
def test_layouts(layout):
    pair = random_pair(4, 5, 24)
    assert_bits(interpreted(*pair, layout=layout), interpreted(*pair))


@pytest.mark.interpret
@pytest.mark.parametrize("spread", [0.0, 80.0, 1e4])
def test_sums_of_any_size(spread):
    pair = random_pair(60, 8, spread=spread)
    assert_merged(interpreted(*pair), pair)


@pytest.mark.interpret
def test_nan_stays_in_its_row():
    pair = random_pair(3, 4, empty=0.0)
    pair.lse_a[0] = torch.nan
    pair.out_b[1, 2] = torch.nan
    out, lse = interpreted(*pair)
    assert out.isnan().tolist() == [[True] * 4, [False, False, True, False], [False] * 4]
    assert lse.isnan().tolist() == [True, False, False]


@pytest.mark.interpret
def test_no_rows_launch_nothing(monkeypatch):
    from triselect.kernels.merge import triton

    monkeypatch.setattr(triton, "merge_rows", None)
    interpreted(*random_pair(3, 0, 8))


@pytest.mark.gpu
@every_dtype
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_a_chunk(dim, dtype):
    pair = random_pair(2, 500, 32, dim, dtype=dtype)
    assert_merged(on_device(*pair), pair)


@pytest.mark.gpu
def test_one_launch():
    assert launches(merge, *random_pair(2, 100, 32, 128)) == ["merge_rows"]


@pytest.mark.gpu
def test_a_captured_graph_merges_new_attentions():
    pair = [on_gpu(x) for x in random_pair(33, 32, 64)]
    merge(*pair)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = merge(*pair)
    for seed in range(1, 4):
        for mine, new in zip(pair, random_pair(33, 32, 64, seed=seed), strict=True):
            mine.copy_(new)
        graph.replay()
        assert_bits(got, merge(*pair))
