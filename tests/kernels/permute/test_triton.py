"""The Triton kernels: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run them too (test_equivalence, test_properties).
"""

from unittest import mock

import numpy as np
import pytest
import torch

import triselect

from ..backends import LAYOUTS, Backend, every_index_dtype, stored
from ..launches import launches
from .cases import assert_same_permutation, assignments

permute = Backend(stored(triselect.permute), "triton", "cpu")
on_device = Backend(stored(triselect.permute), "triton", "cuda")

# The same few assignments in one launch; in two, by segments; by segments of several programs,
# which count and add up more than once.
SMALL = {"COUNTED": 32, "ADDED": 256, "PLACED": 16}
WAYS = {
    "one launch": {"SEGMENT": 2**12},
    "segments": {"SEGMENT": 16},
    "large segments": {"SEGMENT": 16, "SEGMENTS": 2},
    "whole segments": {"SEGMENT": 32, "READS": 1},
}


def smaller(way: str):
    from triselect.kernels.permute import triton

    return mock.patch.multiple(triton, **(SMALL | WAYS[way]))


@pytest.fixture(params=WAYS)
def way(request):
    with smaller(request.param):
        yield request.param


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("tokens", "k", "num_experts", "skew", "padding"),
    [
        (1, 1, 1, "uniform", 0.0),
        (17, 8, 80, "skewed", 0.1),
        (60, 2, 5, "uniform", 0.5),
        (41, 3, 33, "one expert", 0.0),
        (50, 4, 12, "sorted", 0.3),
        (50, 4, 12, "descending", 0.0),
        (30, 3, 7, "uniform", 1.0),
        (25, 5, 1000, "uniform", 0.2),
        (16, 8, 64, "uniform", 0.0),
    ],
)
def test_assignments(way, tokens, k, num_experts, skew, padding):
    experts = assignments(np.random.default_rng(0), tokens, k, num_experts, skew, padding)
    assert_same_permutation(permute(experts, num_experts), experts, num_experts)


@pytest.mark.interpret
@every_index_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(way, layout, dtype):
    experts = assignments(np.random.default_rng(0), 21, 5, 9, "uniform", 0.2, dtype)
    got = permute(experts, 9, layout=layout)
    assert_same_permutation(got, LAYOUTS[layout](experts), 9)


@pytest.mark.interpret
@every_index_dtype
def test_whatever_is_no_expert_is_padding(way, dtype):
    """On a device no one looks at the values; on the CPU the operator would refuse them."""
    from triselect.kernels.permute import triton

    wild = [9, -2, torch.iinfo(dtype).max, torch.iinfo(dtype).min, torch.iinfo(dtype).max - 8, 10]
    experts = assignments(np.random.default_rng(0), 30, 4, 9, "uniform", 0.3)
    gone = experts < 0
    outside = experts.to(dtype)
    outside[gone] = torch.tensor(wild, dtype=dtype).repeat(20)[: gone.sum()]
    got = triselect.Permutation(*triton.permute(outside, 9))
    assert_same_permutation(got, experts, 9)


@pytest.mark.interpret
def test_offsets_beyond_32_bits(way):
    """Tokens 2**30 elements apart; NumPy's memory costs nothing until it is written."""
    far = torch.from_numpy(np.empty(3 * 2**30 + 40, np.int32))
    experts = far.as_strided((4, 40), (2**30, 1))
    experts.copy_(assignments(np.random.default_rng(0), 4, 40, 9))
    assert_same_permutation(permute(experts, 9), experts, 9)


@pytest.mark.interpret
def test_no_tokens_launch_nothing(monkeypatch):
    from triselect.kernels.permute import triton

    monkeypatch.setattr(triton, "place", None)
    experts = torch.empty(0, 8, dtype=torch.int32)
    assert_same_permutation(permute(experts, 64), experts, 64)


@pytest.mark.interpret
def test_more_experts_than_registers_can_count():
    from triselect.kernels.permute import triton

    with pytest.raises(ValueError, match=r"num_experts must be at most 8192 .*, got 8193"):
        permute(torch.zeros(1, 1, dtype=torch.int32), triton.MAX_EXPERTS + 1)


try:
    from .strategies import Case, cases
except pytest.skip.Exception:  # hypothesis is not installed
    pass
else:
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @pytest.mark.interpret
    @given(case=cases(max_tokens=30), way=st.sampled_from(list(WAYS)))
    @settings(max_examples=25)
    def test_random_assignments(case: Case, way: str):
        with smaller(way):
            got = permute(case.experts, case.num_experts, layout=case.layout)
        assert_same_permutation(got, case.experts, case.num_experts)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("tokens", "k", "num_experts", "skew", "padding"),
    [
        (1024, 8, 256, "skewed", 0.0),
        (1025, 8, 256, "uniform", 0.1),
        (16384, 8, 64, "uniform", 0.0),
        (40000, 8, 384, "one expert", 0.01),
        (300000, 6, 160, "skewed", 0.5),
        (5000, 16, 4096, "uniform", 0.0),
        (5000, 16, 8192, "skewed", 0.0),
        (2**21 + 3, 8, 64, "sorted", 0.0),
    ],
)
def test_large_batches(tokens, k, num_experts, skew, padding):
    experts = assignments(np.random.default_rng(0), tokens, k, num_experts, skew, padding)
    assert_same_permutation(on_device(experts, num_experts), experts, num_experts)


@pytest.mark.gpu
def test_launches():
    few = torch.randint(64, (1024, 8), dtype=torch.int32)
    many = torch.randint(64, (1025, 8), dtype=torch.int32)
    assert launches(triselect.permute, few, 64) == ["place"]
    assert launches(triselect.permute, many, 64) == ["count", "place"]


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [33, 5000])
def test_a_captured_graph_permutes_new_experts(tokens):
    static = torch.zeros(tokens, 8, dtype=torch.int32, device="cuda")
    triselect.permute(static, 64)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = triselect.permute(static, 64)
    for seed in range(3):
        experts = assignments(np.random.default_rng(seed), tokens, 8, 64, "skewed", 0.1)
        static.copy_(experts)
        graph.replay()
        assert_same_permutation(triselect.Permutation(*(t.cpu() for t in got)), experts, 64)
