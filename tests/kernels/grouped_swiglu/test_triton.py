"""The Triton kernel: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run it too (test_equivalence, test_properties).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from triselect.kernels.grouped_swiglu import reference

import triselect
from triselect.ops.grouped_swiglu import project, up

from ..backends import LAYOUTS, assert_bits, dtype_name, every_dtype
from ..launches import launches

# NumPy, the interpreter's engine, warns about infinities and NaN, which are meant to go through.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

every_format = pytest.mark.parametrize("weights", ["as rows", "int8", "float8"])

# Sizes of a product, rows of each expert, rows of none.
SIZES = {
    "one number": ((1, 1), [1], 0),
    "empty experts": ((10, 37), [0, 5, 0, 1, 0, 0, 20, 0], 0),
    "padding": ((10, 37), [3, 0, 4], 30),
    "only padding": ((10, 16), [0, 0], 5),
    "no rows at an end": ((33, 20), [0, 16, 17, 0], 0),
    "several steps and columns": ((75, 144), [2, 18], 1),
    "whole steps": ((20, 256), [7, 1], 0),
    "fewer rows than experts": ((20, 144), [0, 1, 0, 0, 2, 0, 0, 1, 0], 0),
    "a row each": ((10, 16), [1, 1, 1], 1),
    "one row": ((10, 20), [0, 0, 0, 1, 0], 0),
    "dozens of rows": ((20, 80), [40, 3], 5),
    "hundreds of rows": ((40, 48), [130], 3),
}


class Case(NamedTuple):
    """Rows and weights of one product; `source` is for the first one."""

    x: Tensor
    weight: Tensor
    offsets: Tensor
    source: Tensor | None
    scale: Tensor | None

    @property
    def down(self) -> tuple[Tensor | None, ...]:
        return self.x, self.weight, self.offsets, self.scale


def case(
    sizes: tuple[int, int],
    counts: Sequence[int],
    padding: int = 0,
    *,
    tokens: int | None = None,
    weights: str = "as rows",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """Numbers of few bits: every sum is exact in float32, in whatever order it is made."""
    rng = np.random.default_rng(seed)
    used = sum(counts)
    source = None
    if tokens is not None:
        drawn = rng.integers(0, tokens, used + padding).astype(np.int32)
        drawn[used:] = -1
        source = torch.from_numpy(drawn)
    x = rng.integers(-2, 3, (used + padding if tokens is None else tokens, sizes[1])) / 16
    shape, scale = (len(counts), *sizes), None
    if weights == "int8":
        weight = torch.from_numpy(rng.integers(-128, 128, shape, np.int8))
        scale = rng.choice([2**-7, 2**-6, 2**-5], shape[:2])
    elif weights == "float8":
        bits = rng.integers(0, 84, shape, np.uint8) | rng.choice([0, 128], shape).astype(np.uint8)
        weight = torch.from_numpy(bits).view(torch.float8_e4m3fn)  # up to 12, subnormal ones too
        scale = rng.choice([0.25, 0.5, 1.0], (shape[0], *(-(-size // 128) for size in sizes)))
    else:
        weight = torch.from_numpy(rng.integers(-8, 9, shape) / 8).to(dtype)
    return Case(
        torch.from_numpy(x).to(dtype),
        weight,
        torch.from_numpy(np.cumsum([0, *counts], dtype=np.int32)),
        source,
        None if scale is None else torch.from_numpy(scale).float(),
    )


def exact(function: Callable[..., np.ndarray], *tensors: Tensor | None) -> Tensor:
    """What the reference makes of them, in float64."""
    arrays = [
        t if t is None else t.numpy() if t.dtype is torch.int32 else t.double().numpy()
        for t in tensors
    ]
    return torch.from_numpy(function(*arrays))


def assert_up(got: Tensor, given: Case) -> None:
    """Products are exact: the roundings left are the few of silu(g) * u, and of the result."""
    expected = exact(reference.grouped_swiglu_up, *given)
    assert got.dtype is given.x.dtype
    info = torch.finfo(got.dtype)
    allowed = expected.abs() * (info.eps / 2 + 2**-21) + info.smallest_normal * info.eps
    assert ((got.double() - expected).abs() <= allowed).all()


def assert_down(got: Tensor, given: Case) -> None:
    assert_bits(got, exact(reference.grouped_swiglu_down, *given.down).to(given.x.dtype))


def call(
    function: Callable[..., Tensor], arguments: tuple[Tensor | None, ...], device: str = "cpu"
) -> Tensor:
    return function(*(t if t is None else t.to(device) for t in arguments), "triton").cpu()


def check(
    sizes: tuple[int, int],
    counts: Sequence[int],
    padding: int = 0,
    *,
    device: str = "cpu",
    **options: Any,
) -> None:
    """Both products of such sizes."""
    n, k = sizes
    given = case((2 * n, k), counts, padding, **options)
    assert_up(call(up, given, device), given)
    given = case(sizes, counts, padding, **options | {"tokens": None})
    assert_down(call(project, given.down, device), given)


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    """Few, which the interpreter takes one after the other."""
    from triselect.kernels.grouped_swiglu import triton

    if not torch.cuda.is_available():
        monkeypatch.setattr(triton, "PROGRAMS", 1)


@pytest.mark.interpret
@every_dtype
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_sizes(sizes, dtype):
    check(*sizes, dtype=dtype)


@pytest.mark.interpret
@every_dtype
@pytest.mark.parametrize("weights", ["int8", "float8"])
def test_weights_of_8_bits(weights, dtype):
    check(*SIZES["several steps and columns"], weights=weights, dtype=dtype)


@pytest.mark.interpret
@every_format
@pytest.mark.parametrize(
    "sizes", ["no rows at an end", "fewer rows than experts", "dozens of rows"]
)
def test_devices_without_tensor_cores_or_8_bit_floats(sizes, weights, monkeypatch):
    from triselect.kernels.grouped_swiglu import triton

    monkeypatch.setattr(triton, "tensor_cores", lambda: False)
    monkeypatch.setattr(triton, "float8", lambda: False)
    check(*SIZES[sizes], weights=weights, dtype=torch.bfloat16)


@pytest.mark.interpret
@every_format
@pytest.mark.parametrize("memory", ["LARGE", "SMALL"])
def test_tiles_of_many_rows(weights, memory, monkeypatch):
    """Those of devices with much shared memory and with little."""
    from triselect.kernels.grouped_swiglu import triton

    memory = triton.LARGE if memory == "LARGE" else 2**14
    monkeypatch.setattr(triton, "shared_memory", lambda: memory)
    check(*SIZES["hundreds of rows"], weights=weights, dtype=torch.float16)


@pytest.mark.interpret
@pytest.mark.parametrize("tokens", [1, 60])
@every_format
def test_rows_are_gathered(weights, tokens):
    check((20, 130), [5, 0, 18, 1], 9, tokens=tokens, weights=weights)


@pytest.mark.interpret
@every_dtype
@pytest.mark.parametrize("float8", [False, True])
def test_every_float_of_8_bits(float8, dtype, monkeypatch):
    from triselect.kernels.grouped_swiglu import triton

    monkeypatch.setattr(triton, "float8", lambda: float8)
    numbers = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
    if float8:  # what the interpreter takes NaN for is finite
        numbers = numbers[~numbers.float().isnan()]
    offsets = torch.tensor([0, 1], dtype=torch.int32)
    one, scale = torch.ones(1, 1, dtype=dtype), torch.ones(1, 2, 1)
    got = project(one, numbers[None, :, None], offsets, scale, "triton")
    torch.testing.assert_close(got[0], numbers.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.interpret
@every_format
def test_some_rows_of_the_weights(weights):
    given = case((300, 140), [3, 0, 18], 2, weights=weights)
    for first, last in ((0, 128), (128, 300)):
        scale = given.scale
        if scale is not None:
            size = 128 if weights == "float8" else 1
            scale = scale[:, first // size : -(-last // size)]
        some = given._replace(weight=given.weight[:, first:last], scale=scale)
        assert_down(call(project, some.down), some)


@pytest.mark.interpret
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_rows(layout):
    given = case((20, 37), [3, 4, 12])
    given = given._replace(x=LAYOUTS[layout](given.x))
    assert_up(call(up, given), given)
    assert_down(call(project, given.down), given)


@pytest.mark.interpret
@every_format
def test_experts_beyond_32_bits(weights):
    """Experts 2**30 numbers apart; NumPy's memory costs nothing until it is written."""
    given = case((6, 17), [1, 0, 2, 1], weights=weights)
    size, shape = given.weight.element_size(), given.weight.shape
    far = torch.from_numpy(np.empty(3 * 2**30 * size + 2**10, np.uint8))
    far = far[: len(far) // size * size].view(given.weight.dtype)
    far = far.as_strided(shape, (2**30, shape[2], 1))
    far.copy_(given.weight)
    assert_down(call(project, given._replace(weight=far).down), given)


@pytest.mark.interpret
def test_rows_beyond_32_bits():
    """NumPy's memory costs nothing until it is written."""
    given = case((6, 17), [1, 0, 2, 1])
    far = torch.from_numpy(np.empty(3 * 2**30 + 17, np.float32)).as_strided((4, 17), (2**30, 1))
    far.copy_(given.x)
    assert_up(call(up, given._replace(x=far)), given)


@pytest.mark.interpret
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("many", [1, 9])
def test_what_is_not_finite_stays_where_it_is(many, dtype, value):
    """Of a row in its own, of an expert in its rows, of an output in its column."""
    given = case((20, 37), [2 * many, many, 3], 5, dtype=dtype)
    x, weight = given.x.clone(), given.weight.clone()
    x[[1, -1, -5]] = value
    weight[1, 5] = value
    odd = given._replace(x=x, weight=weight)
    untouched = torch.ones(len(x), 20, dtype=torch.bool)
    untouched[1] = False
    untouched[2 * many : 3 * many, 5] = False
    before, after = (call(project, each.down) for each in (given, odd))
    assert torch.equal(after[untouched], before[untouched])
    assert not after[~untouched].isfinite().any()
    assert (after[-5:] == 0).all()
    untouched = torch.cat((untouched[:, :5], untouched[:, 6:10]), 1)
    keep = [0, 1, 2, 3, 4, 6, 7, 8, 9]
    before, after = (call(up, each)[:, keep] for each in (given, odd))
    assert torch.equal(after[untouched], before[untouched])


@pytest.mark.interpret
def test_large_gates_and_small_ones():
    """exp(-g) overflows, and silu(g) is 0 or g."""
    x = torch.tensor([[-200.0], [-80.0], [-1.0], [0.0], [1.0], [90.0], [200.0]])
    offsets = torch.tensor([0, 7], dtype=torch.int32)
    given = Case(x, torch.ones(1, 2, 1), offsets, None, None)
    assert_up(call(up, given), given)


@pytest.mark.interpret
def test_scales_that_are_not_finite_do_not_reach_rows_of_no_one():
    for weights in ("int8", "float8"):
        given = case((10, 37), [3, 2], 4, weights=weights)
        given = given._replace(scale=torch.full_like(given.scale, torch.nan))
        got = call(project, given.down)
        assert got[:5].isnan().all()
        assert (got[5:] == 0).all()


@pytest.mark.interpret
@pytest.mark.parametrize("many", [1, 20])
def test_whatever_is_out_of_range_harms_no_one_else(many):
    """On a device no one looks at the values; on the CPU the operator would refuse them."""
    from triselect.kernels.grouped_swiglu import triton

    given = case((20, 37), [many, many], 3, tokens=9)
    far = 2**31 - 1
    source = given.source.clone()
    source[0], source[1], source[-1] = far, -far, far
    before = triton.grouped_swiglu_up(*given)
    after = triton.grouped_swiglu_up(*given._replace(source=source))
    assert_bits(after[2:], before[2:])
    for offsets in ([0, far, far], [0, -far, 5], [far, 3, -5], [-far, 0, far], [5, 2, 9]):
        wild = torch.tensor(offsets, dtype=torch.int32)
        assert triton.grouped_swiglu_up(*given._replace(offsets=wild)).shape == before.shape
    nothing = given._replace(x=given.x[:0], offsets=torch.zeros(3, dtype=torch.int32))
    assert (triton.grouped_swiglu_up(*nothing) == 0).all()


@pytest.mark.interpret
def test_no_rows_launch_nothing(monkeypatch):
    from triselect.kernels.grouped_swiglu import triton

    monkeypatch.setattr(triton, "multiply", None)
    given = case((6, 17), [0, 0])
    assert call(up, given).shape == (0, 3)
    assert call(project, given.down).shape == (0, 6)


@pytest.mark.interpret
def test_any_number_of_programs_has_the_same_result(monkeypatch):
    from triselect.kernels.grouped_swiglu import triton

    given = case((150, 37), [9, 0, 3], dtype=torch.bfloat16)
    for programs in (1, 5, 10**6):
        monkeypatch.setattr(triton, "PROGRAMS", programs)
        assert_up(call(up, given), given)


try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError:
    pass
else:

    @pytest.mark.interpret
    @given(
        sizes=st.tuples(st.integers(1, 40), st.integers(1, 140)),
        counts=st.lists(st.sampled_from([0, 0, 1, 2, 15, 16, 17, 40]), min_size=1, max_size=12),
        padding=st.sampled_from([0, 0, 1, 16, 33]),
        options=st.fixed_dictionaries(
            {
                "tokens": st.sampled_from([None, 1, 7]),
                "weights": st.sampled_from(["as rows", "int8", "float8"]),
                "dtype": st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
                "seed": st.integers(0, 99),
            }
        ),
    )
    @settings(max_examples=10)
    def test_random_cases(sizes, counts, padding, options):
        check(sizes, counts, padding, **options)


@pytest.mark.gpu
@every_dtype
@every_format
@pytest.mark.parametrize("rows", [1, 4, 30, 150, 600])
@pytest.mark.parametrize("sizes", [(704, 1024), (515, 333)], ids=str)
def test_sizes_of_models(sizes, rows, weights, dtype):
    drawn = np.random.default_rng(0).poisson(rows, 8)
    counts = [0, *drawn.tolist()]
    check(sizes, counts, 20, device="cuda", weights=weights, dtype=dtype)
    check(sizes, counts, 20, device="cuda", weights=weights, dtype=dtype, tokens=50)


def on_gpu(
    n: int, k: int, counts: Sequence[int], padding: int = 0, **options: Any
) -> tuple[tuple, dict]:
    """Arguments of `grouped_swiglu` there."""
    first, second = (case(sizes, counts, padding, **options) for sizes in ((2 * n, k), (k, n)))
    tensors = {
        "source": first.source,
        "gate_up_scale": first.scale,
        "down_scale": second.scale,
    }
    arguments = (first.x, first.weight, second.weight, first.offsets)
    return tuple(t.cuda() for t in arguments), {
        name: None if t is None else t.cuda() for name, t in tensors.items()
    }


@pytest.mark.gpu
@every_format
@pytest.mark.parametrize("rows", [1, 300])
def test_launches(rows, weights):
    arguments, options = on_gpu(
        64, 128, [rows] * 4, tokens=9, weights=weights, dtype=torch.bfloat16
    )
    assert launches(triselect.grouped_swiglu, *arguments, **options) == ["multiply"] * 2


@pytest.mark.gpu
@every_format
def test_a_captured_graph_follows_new_offsets(weights):
    arguments, options = on_gpu(64, 128, [20, 9], 3, tokens=9, weights=weights)

    def run() -> Tensor:
        return triselect.grouped_swiglu(*arguments, **options)

    run()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    for offsets in ([0, 0, 32], [0, 31, 31], [0, 2, 4]):
        arguments[3].copy_(torch.tensor(offsets))
        options["source"].copy_(torch.randint(0, 9, (32,)))
        graph.replay()
        assert_bits(got.cpu(), run().cpu())
        assert (got[offsets[-1] :] == 0).all()
