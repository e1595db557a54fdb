"""The Triton kernels: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run them too (test_equivalence, test_properties).
"""

from contextlib import ExitStack
from itertools import repeat
from unittest import mock

import numpy as np
import pytest
import torch
from triselect.kernels.permute import reference

import triselect

from ..backends import LAYOUTS, Backend, assert_bits, every_dtype
from ..grouped_topk.cases import SETTINGS, inputs
from ..launches import launches, on_gpu
from .cases import apart, fused

# Infinite logits are meant to go through, which NumPy, the interpreter's engine, warns about.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

interpreted = Backend(fused, "triton", "cpu")
on_device = Backend(fused, "triton", "cuda")

# Which tokens go which way, and what must not be launched on it.
WAYS = {
    "in groups": {"route_and_permute_all": None, "route_segments": None},
    "by the last": {"GROUPWISE_TOKENS": 0, "route_and_permute_group": None, "route_segments": None},
    "in segments": {"GROUPWISE_TOKENS": 0, "ONE_LAUNCH_TOKENS": 0, "route_and_permute_all": None},
}
IN_GROUPS = ("pangu-pro", "moge-80", "moge-60", "moge-144")  # balanced, and all groups are kept
FEW = ("pangu-pro", "moge-60", "deepseek-v3", "kimi-k2", "limited-balanced-top2")


def going(way: str):
    """That way with the smallest of tiles, so that few tokens are many programs."""
    from triselect.kernels.grouped_topk.triton import segments
    from triselect.kernels.route_and_permute import triton

    stack = ExitStack()
    stack.enter_context(
        mock.patch.multiple(triton, ADDED=64, WARPS=1, GROUPWISE_WARPS=1, **WAYS[way])
    )
    stack.enter_context(mock.patch.multiple(segments, WARPS=1, SEGMENTS=2))
    return stack


def assert_as_apart(backend, logits, *, layout="contiguous", **options):
    """The bits of the two operators by the same backend, and the permutation of the reference."""
    got = backend(logits, layout=layout, **options)
    assert_bits(got, backend._replace(function=apart)(logits, layout=layout, **options))
    expected = reference.permute(got.experts.numpy(), logits.shape[1])
    for mine, theirs in zip(got.permutation, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def every_way_of(names):
    return pytest.mark.parametrize(
        ("way", "name"),
        [(way, name) for way in WAYS for name in names if way != "in groups" or name in IN_GROUPS],
    )


@pytest.mark.interpret
@every_way_of(FEW)
def test_models(way, name):
    logits, options = inputs(SETTINGS[name], 19 if SETTINGS[name].experts < 200 else 9)
    with going(way):
        assert_as_apart(interpreted, logits, **options)


@pytest.mark.interpret
@every_way_of(["moge-60"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(way, name, layout):
    logits, options = inputs(SETTINGS[name], 19, torch.bfloat16)
    with going(way):
        assert_as_apart(interpreted, logits, layout=layout, **options)


@pytest.mark.interpret
@every_way_of(["moge-60", "limited-balanced-top2"])
@pytest.mark.parametrize("values", [[0.0, 1.0], [-np.inf, np.nan]])
def test_ties(way, name, values):
    setting = SETTINGS[name]
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.choice(values, (19, setting.experts))).float()
    with going(way):
        assert_as_apart(interpreted, logits, **setting.options)


@pytest.mark.interpret
@pytest.mark.parametrize("tokens", [0, 1, 9])
@every_way_of(["moge-60"])
def test_few_tokens(way, name, tokens):
    logits, options = inputs(SETTINGS[name], tokens)
    with going(way):
        assert_as_apart(interpreted, logits, **options)


@pytest.mark.interpret
def test_a_graph_has_the_same_flags_every_time(monkeypatch):
    """And the same number: the last program has to lower the flags, whatever they were at first."""
    from triselect.kernels.route_and_permute import triton

    memory = {}  # what a graph keeps
    right = triton.flags
    monkeypatch.setattr(triton, "flags", lambda *args: memory.setdefault(args[1], right(*args)))
    monkeypatch.setattr(triton, "LAUNCHES", repeat(2**61 + 1))
    for seed in range(3):
        logits, options = inputs(SETTINGS["moge-60"], 19, seed=seed)
        with going("by the last"):
            assert_as_apart(interpreted, logits, **options)
    ((programs, flags),) = memory.items()
    assert programs > 2
    assert flags.tolist() == [0] * programs


@pytest.mark.interpret
def test_no_two_launches_have_the_same_number():
    from triselect.kernels.route_and_permute import triton

    numbers = [next(triton.LAUNCHES) for _ in range(9)]
    assert len(set(numbers)) == 9
    assert all(2**31 <= number < 2**63 - 1 for number in numbers)


try:
    from ..grouped_topk.strategies import Case, cases, random, tied
except pytest.skip.Exception:  # hypothesis is not installed
    pass
else:
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @pytest.mark.interpret
    @given(case=cases(random, max_tokens=20) | cases(tied, max_tokens=20), many=st.booleans())
    @settings(max_examples=15)
    def test_random_logits(case: Case, many: bool):
        with going("in segments" if many else "by the last"):
            assert_as_apart(interpreted, case.logits, layout=case.layout, **case.options)


@pytest.mark.gpu
@every_dtype
@pytest.mark.parametrize("tokens", [1, 100, 256, 257, 1000, 1025, 16387])
@pytest.mark.parametrize("name", SETTINGS)
def test_batches(name, tokens, dtype):
    logits, options = inputs(SETTINGS[name], tokens, dtype)
    assert_as_apart(on_device, logits, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FEW)
def test_launches(name):
    def found(tokens):
        logits, options = inputs(SETTINGS[name], tokens)
        return launches(triselect.route_and_permute, logits, **options)

    in_groups = name in IN_GROUPS
    assert found(256) == ["route_and_permute_group" if in_groups else "route_and_permute_all"]
    assert found(1000) == ["route_and_permute_all"]
    assert found(16384) == ["route_segment", "place"]


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [33, 1000, 5000])
@pytest.mark.parametrize("name", ["pangu-pro", "deepseek-v3"])
def test_a_captured_graph_routes_new_logits(name, tokens):
    logits, options = inputs(SETTINGS[name], tokens)
    there = {name: on_gpu(value) for name, value in options.items()}
    static = logits.cuda()
    triselect.route_and_permute(static, **there)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = triselect.route_and_permute(static, **there)
    for seed in range(1, 6):
        static.copy_(inputs(SETTINGS[name], tokens, seed=seed)[0])
        graph.replay()
        assert_bits(got, triselect.route_and_permute(static, **there))


@pytest.mark.gpu
def test_side_by_side_and_again_and_again():
    """On streams that run at the same time: programs of one launch are not those of another."""
    logits, options = inputs(SETTINGS["deepseek-v3"], 1000)
    logits = logits.cuda()
    there = {name: on_gpu(value) for name, value in options.items()}
    expected = triselect.route_and_permute(logits, **there)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    found = []
    for i in range(400):
        with torch.cuda.stream(streams[i % 4]):
            found.append(triselect.route_and_permute(logits, **there))
    torch.cuda.synchronize()
    for got in found:
        assert_bits(got, expected)
