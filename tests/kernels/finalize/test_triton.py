"""The Triton kernel: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run it too.
"""

from unittest import mock

import numpy as np
import pytest
import torch

import triselect

from ..backends import LAYOUTS, Backend, assert_bits, every_dtype, every_index_dtype
from ..launches import launches, on_gpu
from .cases import Case, assert_exact, assert_finalized, case, integers, laid_out, permutation_of
from .test_errors import changed
from .test_invariants import assert_k_by_k

interpreted = Backend(laid_out, "triton", "cpu")
on_device = Backend(laid_out, "triton", "cuda")
SHAPES = [
    {"tokens": 1, "top_k": 8, "hidden": 70},
    {"tokens": 2, "top_k": 11, "hidden": 1100},
    {"tokens": 2, "top_k": 2, "hidden": 2048},
    {"tokens": 1, "top_k": 1, "hidden": 1, "experts": 1},
    {"tokens": 4, "padding": 1.0},
    {"tokens": 0},
    {"hidden": 0},
    {"top_k": 0},
]


@pytest.mark.interpret
@every_dtype
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_shapes(sizes, dtype):
    """Several programs to a token, several rounds of rows, sizes that are no power of two."""
    for more in ({}, {"bias": dtype, "residuals": 1}, {"bias": torch.float32, "residuals": 2}):
        drawn = case(**sizes, **more, dtype=dtype)
        assert_finalized(interpreted(*drawn), drawn)


@pytest.mark.interpret
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    tokens = 1 if layout == "expanded" else 5
    drawn = case(tokens=tokens, bias=torch.float32, residuals=2, data=integers)
    got = interpreted(*drawn, layout=layout)
    if layout == "expanded":
        drawn = Case(*(x[:1].expand_as(x) for x in drawn))
    assert_exact(got, drawn)


@pytest.mark.interpret
@every_index_dtype
def test_experts_of_either_width(dtype):
    drawn = case(bias=torch.float32)
    drawn = drawn._replace(experts=drawn.experts.to(dtype))
    assert_finalized(interpreted(*drawn), drawn)


@pytest.mark.interpret
@pytest.mark.parametrize("top_k", [3, 9])
def test_k_by_k(top_k):
    assert_k_by_k(interpreted, top_k)


@pytest.mark.interpret
def test_what_is_out_of_range_is_skipped():
    """As on a device, where nobody looks at it first."""
    from triselect.kernels.finalize import triton

    drawn = case(padding=0.0, bias=torch.float32, residuals=1)
    expected = triton.finalize(*drawn._replace(slot_of=changed(drawn.slot_of, -1)))
    for bad in (-7, 28, 2**31 - 1):
        got = triton.finalize(*drawn._replace(slot_of=changed(drawn.slot_of, bad)))
        assert_bits(got, expected)
    for bad in (-1, -7, 6, 2**40):
        got = triton.finalize(*drawn._replace(experts=changed(drawn.experts.long(), bad)))
        assert_bits(got, expected)


@pytest.mark.interpret
def test_what_is_skipped_says_nothing():
    drawn = case(tokens=9, padding=0.5, bias=torch.float32)
    drawn.weights[drawn.slot_of < 0] = torch.nan
    assert interpreted(*drawn).isfinite().all()


@pytest.mark.interpret
@every_dtype
def test_out_is_written_in_place(dtype):
    drawn = case(tokens=5, bias=dtype, residuals=2, dtype=dtype)
    expected = interpreted(*drawn)
    around = torch.full((5, 40), 7.0, dtype=dtype)
    out = around[:, 3:27]
    assert laid_out(*drawn, out=out, backend="triton") is out
    assert_bits(out, expected)
    assert (around[:, :3] == 7).all()
    assert (around[:, 27:] == 7).all()
    assert laid_out(*drawn, out=drawn.residual, backend="triton") is drawn.residual
    assert_bits(drawn.residual, expected)


@pytest.mark.interpret
def test_offsets_beyond_32_bits():
    """Rows 2**28 elements apart; NumPy's memory costs nothing until it is written."""
    drawn = case(tokens=5, data=integers)
    far = torch.from_numpy(np.empty(20 * 2**28, np.float32))
    rows = far.as_strided(drawn.rows.shape, (2**28, 1))
    rows.copy_(drawn.rows)
    assert_exact(interpreted(rows, *drawn[1:]), drawn)


@pytest.mark.interpret
def test_nothing_to_write_launches_nothing():
    from triselect.kernels.finalize import triton

    with mock.patch.object(triton, "combine", None):
        for sizes in ({"tokens": 0}, {"hidden": 0}):
            interpreted(*case(**sizes))


try:
    from .strategies import Drawn, cases
except pytest.skip.Exception:  # hypothesis is not installed
    pass
else:
    from hypothesis import given, settings

    @pytest.mark.interpret
    @given(drawn=cases(integers, max_tokens=6))
    @settings(max_examples=25)
    def test_random_cases(drawn: Drawn):
        assert_exact(interpreted(*drawn.case, layout=drawn.layout), drawn.case)


@pytest.mark.gpu
@every_dtype
@pytest.mark.parametrize("tokens", [1, 16, 1000])
def test_sizes_of_models(tokens, dtype):
    sizes = {"tokens": tokens, "top_k": 8, "hidden": 5120, "experts": 64}
    drawn = case(**sizes, bias=dtype, residuals=2, dtype=dtype)
    assert_finalized(on_device(*drawn), drawn)


@pytest.mark.gpu
def test_one_launch():
    rows, weights, slot_of, *_, residual, _ = map(on_gpu, case(residuals=1))
    options = {"residuals": [residual]}
    args = rows, weights, permutation_of(slot_of)
    assert launches(triselect.finalize, *args, **options) == ["combine"]
    options["out"] = torch.empty_like(residual)
    assert launches(triselect.finalize, *args, **options) == ["combine"]


@pytest.mark.gpu
def test_a_captured_graph_combines_new_rows():
    drawn = [on_gpu(x) for x in case(9, tokens=33, bias=torch.float32, residuals=1)[:6]]

    def call():
        return laid_out(*drawn, None, backend="triton")

    call()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    for seed in range(1, 4):
        new = case(seed, tokens=33, bias=torch.float32, residuals=1)
        for mine, theirs in zip(drawn, new, strict=False):
            mine.copy_(theirs)
        graph.replay()
        assert_bits(got, call())


@pytest.mark.gpu
def test_gradients_on_a_device():
    drawn = case(tokens=50, bias=torch.float32, residuals=1)
    found = []
    for device in ("cpu", "cuda"):
        args = [x if x is None else x.detach().to(device) for x in drawn]
        some = [args[i].requires_grad_() for i in (0, 1, 4, 5)]
        grads = torch.autograd.grad(laid_out(*args).pow(2).sum(), some)
        found.append([x.cpu() for x in grads])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
