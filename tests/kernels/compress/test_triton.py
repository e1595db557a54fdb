"""The Triton kernel: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run it too (test_equivalence, test_properties).
"""

from unittest import mock

import numpy as np
import pytest
import torch

from triselect.ops.compress import Compressed, compress

from ..backends import INDEX_DTYPES, LAYOUTS, Backend, assert_bits, every_dtype
from ..launches import launches
from .cases import (
    EIGHT_BITS,
    VALUES,
    Case,
    assert_compressed,
    assert_exact,
    case,
    integers,
    laid_out,
)
from .test_invariants import bits, cache

compressed = Backend(laid_out, "triton", "cpu")
on_device = Backend(laid_out, "triton", "cuda")


@pytest.mark.interpret
@pytest.mark.parametrize("values", VALUES, ids=str)
@every_dtype
@pytest.mark.parametrize(
    "sizes",
    [
        {"tokens": (1,), "heads": 3, "groups": 3, "dim": 20, "numbers": 24},
        {"tokens": (), "heads": 5, "groups": 1, "dim": 1, "numbers": 1},
        {"tokens": (2, 9), "heads": 6, "groups": 2, "dim": 8, "numbers": 130, "bias": False},
        {"tokens": (3,), "heads": 4, "groups": 2, "dim": 140, "numbers": 16},
    ],
    ids=str,
)
def test_shapes(sizes, dtype, values):
    drawn = case(**sizes, dtype=dtype)
    assert_compressed(compressed(*drawn, dtype=values), drawn, in_float32=False)


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_of_heads_lose_nothing_that_shows(dtype):
    """Two numbers of 16 bits hold a sum: nothing like the error of rounding it to 16 bits."""
    drawn = case(tokens=(40,), heads=10, groups=2, dim=16, dtype=dtype)
    got = compressed(*drawn, dtype=torch.float32).values.double()
    x = drawn.x.double().unflatten(1, (2, 5)).sum(2).flatten(1)
    y = torch.nn.functional.linear(x, drawn.weight.double(), drawn.bias.double())
    bound = x.abs() @ drawn.weight.double().abs().T
    assert ((got - y).abs() <= bound * 2.0**-15).all()


@pytest.mark.interpret
def test_sums_of_heads_beyond_16_bits():
    x = torch.full((1, 8, 1), 6e4, dtype=torch.float16)
    weight = torch.ones(1, 1, dtype=torch.float16)
    assert compressed(x, weight, dtype=torch.float32).values.item() == 8 * x[0, 0].item()
    x[0, 3] = torch.inf
    assert compressed(x, weight, dtype=torch.float32).values.item() == torch.inf


@pytest.mark.interpret
@pytest.mark.parametrize("layout", [*LAYOUTS, "heads first"])
@pytest.mark.parametrize("tokens", [(20,), (3, 7), (2, 3, 5)], ids=str)
def test_layouts(layout, tokens):
    drawn = case(tokens=tokens, data=integers)
    got = compressed(*drawn, layout=layout)
    if layout == "expanded":
        drawn = Case(*(t[:1].expand_as(t) for t in drawn))
    assert_exact(got, drawn)


@pytest.mark.interpret
@pytest.mark.parametrize("values", VALUES, ids=str)
@pytest.mark.parametrize("index", INDEX_DTYPES, ids=str)
def test_slots(values, index):
    """Whatever is no row is not written: on a device no one looks at it first."""
    from triselect.kernels.compress import triton

    drawn = case(tokens=(2, 4), data=integers)
    slots = torch.tensor([[3, 49, -1, 0], [50, -2, 21, 2**31 - 1]], dtype=index)
    out, before = cache((5, 10, 12), values), cache((5, 10, 12), values)
    triton.compress(*drawn, slots, *out)
    written = (slots >= 0) & (slots < 50)
    rows = slots[written].long()
    new = compressed(*drawn, dtype=values)
    assert_bits(bits(out, rows), bits(new, written.flatten()))
    untouched = torch.ones(50, dtype=torch.bool).index_fill(0, rows, False)
    assert_bits(bits(out, untouched), bits(before, untouched))
    strided = cache((5, 10, 12), values)
    triton.compress(*drawn, slots.T.contiguous().T, *strided)
    assert_bits(bits(strided), bits(out))


@pytest.mark.interpret
@pytest.mark.parametrize("values", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("numbers", [12, 150])
def test_not_finite_and_zero(values, numbers):
    x, weight, _ = case(bias=False, numbers=numbers, data=integers)
    x[1, 0, 0], x[3, 1, 2] = torch.nan, -torch.inf
    x[2] = 0
    got = compressed(x, weight, dtype=values)
    assert got.scale.isnan().tolist() == [False, True, False, True, False, False]
    assert got.scale[2] == 0
    assert (got.values.float()[1:4] == 0).all()
    alone = compressed(x[[0, 4, 5]], weight, dtype=values)
    assert_bits(bits(got, torch.tensor([0, 4, 5])), bits(alone))


@pytest.mark.interpret
@pytest.mark.parametrize("size", [2e-43, 6.9e-43])
@pytest.mark.parametrize("values", EIGHT_BITS, ids=str)
def test_a_scale_without_digits(values, size):
    """It may be less than it should be, by a third; values do not pass their limit."""
    x = torch.tensor([1.0, -1, 0.5]).view(1, 1, 3) * size
    got = compressed(x, torch.eye(3), dtype=values)
    first, second, _ = got.values[0].tolist()
    assert 0 <= first <= (127 if values is torch.int8 else 448)
    assert second == -first


@pytest.mark.interpret
def test_ties_go_to_even():
    numbers = torch.tensor([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 0.49999997])
    got = compressed(numbers.view(1, 1, 9), torch.eye(9), dtype=torch.int8)
    assert got.values.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126, 0]]
    numbers = torch.tensor([448, 17, 19, 432, 2.0**-10, 3 * 2.0**-10, 0.015, -17])
    got = compressed(numbers.view(1, 1, 8), torch.eye(8), dtype=torch.float8_e4m3fn)
    assert got.scale.item() == 1
    assert torch.equal(got.values, numbers[None].to(torch.float8_e4m3fn))


@pytest.mark.interpret
@pytest.mark.parametrize("programs", [1, 2, 64])
def test_any_number_of_programs(programs):
    from triselect.kernels.compress import triton

    drawn = case(tokens=(70,), numbers=70, data=integers)
    halves = Case(*(t.half() for t in drawn))
    with mock.patch.object(triton, "PROGRAMS", programs):
        assert_exact(compressed(*drawn), drawn)
        assert_exact(compressed(*halves), halves)


@pytest.mark.interpret
def test_offsets_beyond_32_bits():
    """Tokens 2**28 elements apart, then heads; NumPy's memory costs nothing until it is written."""
    drawn = case(tokens=(20,), heads=20, groups=20, dim=4, data=integers)
    far = torch.from_numpy(np.empty(20 * 2**28, np.float32))
    for strides in ((2**28, 4, 1), (4, 2**28, 1)):
        x = far.as_strided(drawn.x.shape, strides)
        x.copy_(drawn.x)
        assert_exact(compressed(x, *drawn[1:]), drawn)
    one_group = case(tokens=(20,), heads=20, groups=1, dim=4, data=integers)
    x = far.as_strided(one_group.x.shape, (4, 2**28, 1))
    x.copy_(one_group.x)
    assert_exact(compressed(x, *one_group[1:]), one_group)


@pytest.mark.interpret
def test_no_tokens_launch_nothing(monkeypatch):
    from triselect.kernels.compress import triton

    monkeypatch.setattr(triton, "write", None)
    got = compressed(*case(tokens=(0, 5)), dtype=torch.int8)
    assert (got.values.shape, got.scale.shape) == ((0, 5, 12), (0, 5))


try:
    from .strategies import Drawn, cases
except pytest.skip.Exception:  # hypothesis is not installed
    pass
else:
    from hypothesis import given, settings

    @pytest.mark.interpret
    @given(drawn=cases(integers, max_tokens=20))
    @settings(max_examples=25)
    def test_random_cases(drawn: Drawn):
        assert_exact(compressed(*drawn.case, dtype=drawn.dtype, layout=drawn.layout), drawn.case)


@pytest.mark.gpu
@pytest.mark.parametrize("values", VALUES, ids=str)
@every_dtype
@pytest.mark.parametrize("tokens", [1, 512, 8192])
@pytest.mark.parametrize("heads", [8, 32, 64])
def test_sizes_of_models(heads, tokens, dtype, values):
    if values is torch.float8_e4m3fn and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("8-bit floats come with sm_89")
    sizes = {"tokens": (tokens,), "heads": heads, "groups": 8, "dim": 128, "numbers": 128}
    drawn = case(**sizes, dtype=dtype)
    assert_compressed(on_device(*drawn, dtype=values), drawn, in_float32=False)


@pytest.mark.gpu
def test_launches():
    drawn = case()
    for dtype in (torch.float32, torch.int8):
        assert launches(compress, *drawn, dtype=dtype) == ["write"]


@pytest.mark.gpu
def test_a_captured_graph_appends_new_keys():
    drawn = case(tokens=(1,), data=integers)
    x, weight, bias = (t.cuda() for t in drawn)
    slots = torch.zeros(1, dtype=torch.int64, device="cuda")
    out = cache((9, 12), torch.int8, "cuda")
    compress(x, weight, bias, out=out, slots=slots)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compress(x, weight, bias, out=out, slots=slots)
    keys = [case(seed, tokens=(1,), data=integers).x for seed in range(9)]
    for t, key in enumerate(keys):
        x.copy_(key)
        slots.fill_(t)
        graph.replay()
    got = Compressed(*(t.cpu() for t in out))
    assert_exact(got, Case(torch.cat(keys), *drawn[1:]))
