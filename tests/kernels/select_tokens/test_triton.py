"""The Triton kernels: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run them too (test_equivalence, test_properties).
"""

from unittest import mock

import numpy as np
import pytest
import torch

from triselect.ops import select_tokens

from ..backends import LAYOUTS, Backend, dtype_name, every_dtype, stored
from ..launches import launches
from .cases import assert_selects_as_the_reference, every_kind, ranges_of, scores_of

select = Backend(stored(select_tokens), "triton", "cpu")
on_device = Backend(stored(select_tokens), "triton", "cuda")

# The same few tokens by one program, in several tiles; in pieces of a tile, and of two.
SMALL = {"TILE": 32, "ADDED": 2, "NEAR": 2}
WAYS = {
    "one program": {"ONE_PROGRAM": 2**13},
    "pieces": {"ONE_PROGRAM": 1, "RATIO": 10},
    "large pieces": {"ONE_PROGRAM": 1, "RATIO": 1, "PROGRAMS": 3},
}


def smaller(way: str):
    from triselect.kernels.select_tokens import triton

    return mock.patch.multiple(triton, **(SMALL | WAYS[way]))


@pytest.fixture(params=WAYS)
def way(request):
    with smaller(request.param):
        yield request.param


def these_ways(*ways: str) -> pytest.MarkDecorator:
    """Not all of them: the interpreter takes 0.2 seconds for a row in pieces."""
    return pytest.mark.parametrize("way", ways, indirect=True)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def assert_selects(scores, k, layout="contiguous", **options):
    got = select(scores, k, layout=layout, **options)
    assert_selects_as_the_reference(got, LAYOUTS[layout](scores), k, **options)


@pytest.mark.interpret
@these_ways("one program", "pieces")
@every_kind
def test_scores(way, kind):
    assert_selects(scores_of(rng(), 1, 120, kind), 40)


@pytest.mark.interpret
@these_ways("pieces")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("kind", ["normal", "few values", "nan", "all powers"])
def test_scores_of_16_bits(way, kind, dtype):
    assert_selects(scores_of(rng(), 1, 120, kind, dtype), 40)


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("tokens", "k"), [(0, 3), (1, 1), (1, 2), (31, 1), (32, 32), (33, 70), (65, 64), (131, 40)]
)
def test_sizes(way, tokens, k):
    assert_selects(scores_of(rng(), 1, tokens, "few values"), k)


@pytest.mark.interpret
@these_ways("one program")
@pytest.mark.parametrize("proximity", [1, 2, 3, 4, 5, 9, 37, 70, 10**6])
def test_reach(way, proximity):
    """Read as a whole to 2 tokens away, put together beyond."""
    start, end = torch.tensor([3]), torch.tensor([67])
    assert_selects(scores_of(rng(), 1, 70), 20, proximity=proximity, start=start, end=end)


@pytest.mark.interpret
@pytest.mark.parametrize("proximity", [0, 5])
def test_ranges(way, proximity):
    scores = scores_of(rng(), 3, 100, "few values")
    start, end = ranges_of(rng(1), 3, 100)
    assert_selects(scores, 20, proximity=proximity, start=start.int(), end=end)


@pytest.mark.interpret
@these_ways("pieces")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("proximity", [0, 1])
def test_layouts(way, layout, proximity):
    assert_selects(scores_of(rng(), 2, 70), 20, layout, proximity=proximity)


@pytest.mark.interpret
@these_ways("one program", "large pieces")
@pytest.mark.parametrize(
    ("start", "end"), [(-3, 99), (40, 99), (-3, 40), (40, 20), (80, 99), (-9, -3), (2**40, 2**41)]
)
def test_tokens_that_do_not_exist_are_not_selected(way, start, end):
    """On a device no one looks at the values; on the CPU the operator would refuse them."""
    from triselect.kernels.select_tokens import triton

    scores = scores_of(rng(), 1, 70)
    bounds = (torch.tensor([start]), torch.tensor([end]))
    for proximity in (0, 3):
        got = triton.select_tokens(scores, 20, proximity, *bounds)
        assert_selects_as_the_reference(got, scores, 20, proximity, *bounds)


@pytest.mark.interpret
@these_ways("one program", "pieces")
@pytest.mark.parametrize("proximity", [0, 1])
def test_offsets_beyond_32_bits(way, proximity):
    """Rows 2**31 elements apart; NumPy's memory costs nothing until it is written."""
    far = torch.from_numpy(np.empty(2**31 + 40, np.float32))
    scores = far.as_strided((2, 40), (2**31, 1))
    scores.copy_(scores_of(rng(), 2, 40))
    assert_selects_as_the_reference(select(scores, 9, proximity=proximity), scores, 9, proximity)


@pytest.mark.interpret
def test_no_rows_launch_nothing(monkeypatch):
    from triselect.kernels.select_tokens import triton

    monkeypatch.setattr(triton, "select", None)
    assert select(torch.empty(0, 7), 3).shape == (0, 3)


try:
    from .strategies import Case, any_scores, ties
except pytest.skip.Exception:  # hypothesis is not installed
    pass
else:
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @pytest.mark.interpret
    @given(case=any_scores(max_tokens=100) | ties(), way=st.sampled_from(list(WAYS)))
    @settings(max_examples=25)
    def test_random_scores(case: Case, way: str):
        with smaller(way):
            got = select(case.scores, case.k, layout=case.layout, **case.options())
        assert_selects_as_the_reference(got, case.scores, case.k, **case.options())


@pytest.mark.gpu
@every_dtype
@every_kind
@pytest.mark.parametrize(
    ("rows", "tokens", "k"), [(1, 131072, 2048), (3, 2**20 + 3, 4096), (300, 9000, 512)]
)
def test_long_rows(rows, tokens, k, kind, dtype):
    scores = scores_of(rng(), rows, tokens, kind, dtype)
    start, end = ranges_of(rng(1), rows, tokens)
    got = on_device(scores, k, proximity=1, start=start, end=end)
    assert_selects_as_the_reference(got, scores, k, 1, start, end)


@pytest.mark.gpu
def test_launches():
    short, long = torch.randn(1, 8192), torch.randn(1, 131072)
    assert launches(select_tokens, short, 512) == ["select"]
    assert launches(select_tokens, long, 2048) == ["count"] * 4 + ["store"]
    assert launches(select_tokens, long.half(), 2048) == ["count"] * 2 + ["store"]
    assert launches(select_tokens, long, 2048, proximity=1) == ["widen"] + ["count"] * 4 + ["store"]


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [4096, 100_000])
def test_a_captured_graph_selects_by_new_scores_and_ranges(tokens):
    scores = torch.zeros(2, tokens, device="cuda")
    end = torch.zeros(2, dtype=torch.int64, device="cuda")
    select_tokens(scores, 300, proximity=2, end=end)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = select_tokens(scores, 300, proximity=2, end=end)
    for seed, kind in enumerate(("normal", "at the boundary", "nan")):
        new = scores_of(rng(seed), 2, tokens, kind)
        new_end = torch.tensor([tokens - seed, tokens // 2])
        scores.copy_(new)
        end.copy_(new_end)
        graph.replay()
        assert_selects_as_the_reference(got.cpu(), new, 300, 2, end=new_end)
