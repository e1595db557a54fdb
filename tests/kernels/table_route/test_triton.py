"""The Triton kernel: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run it too (test_equivalence, test_properties).
"""

from itertools import product

import numpy as np
import pytest
import torch
from triselect.kernels.table_route import reference

import triselect

from ..backends import LAYOUTS, Backend, assert_bits, every_dtype, every_index_dtype
from ..grouped_topk.cases import every_scoring
from ..launches import launches, on_gpu
from .cases import Call, assert_same_routing, random_call, route

# Infinite logits are meant to go through, which NumPy, the interpreter's engine, warns about.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

interpreted = Backend(route, "triton", "cpu")
on_device = Backend(route, "triton", "cuda")


@pytest.fixture(autouse=True)
def _few_slots(monkeypatch):
    """Tiles of so few tokens that small cases take several programs."""
    from triselect.kernels.table_route import triton

    if not torch.cuda.is_available():
        monkeypatch.setattr(triton, "TILE", 32)


@pytest.mark.interpret
@every_index_dtype
@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("k", [0, 1, 3, 8])
@pytest.mark.parametrize("vocabulary", [None, 0, 1, 40], ids=lambda v: f"table-{v}")
def test_ids(vocabulary, k, groups, dtype):
    call = random_call(21, vocabulary, k, groups, dtype=dtype, routed_scaling_factor=2.5)
    assert_same_routing(interpreted(*call), call)


@pytest.mark.interpret
@pytest.mark.parametrize("seed", [1, 2**31 - 1, 2**31, 2**32 - 1])
def test_the_hash_of_any_seed(seed):
    call = random_call(40, None, 2, size=1000, seed=seed)._replace(seed=seed)
    assert_same_routing(interpreted(*call), call)


@pytest.mark.interpret
@every_scoring
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights(scoring_func, renormalize, dtype):
    call = random_call(
        13,
        groups=3,
        size=7,
        logits=dtype,
        scoring_func=scoring_func,
        renormalize=renormalize,
        routed_scaling_factor=2.5,
    )
    assert_same_routing(interpreted(*call), call)


@pytest.mark.interpret
@every_scoring
@pytest.mark.parametrize("value", [-np.inf, np.nan, np.inf])
def test_infinite_logits(scoring_func, value):
    call = random_call(9, groups=2, size=5, logits=torch.float32, scoring_func=scoring_func)
    call.logits[:, ::3] = value
    call.logits[0] = value
    assert_same_routing(interpreted(*call), call)


@pytest.mark.interpret
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("vocabulary", [None, 40])
def test_layouts(vocabulary, layout):
    call = random_call(21, vocabulary, groups=2, logits=torch.float16, scoring_func="softmax")
    assert_same_routing(interpreted(*call, layout=layout), call.stored(layout))


def wild_call(dtype: torch.dtype, vocabulary: int | None) -> Call:
    """Ids, domains and entries within their range, one off, and as far off as can be."""
    info = torch.iinfo(dtype)
    ids = [0, 5, -1, info.min] + ([] if vocabulary is None else [vocabulary, info.max])
    domains = [0, 2, -1, 3, info.min, info.max]
    ids, domains = torch.tensor(list(product(ids, domains)), dtype=dtype).T
    table = None
    if vocabulary is not None:
        entries = torch.tensor([0, 6, -1, 7, info.min, info.max], dtype=dtype)
        table = entries.repeat(vocabulary)[: 4 * vocabulary].view(vocabulary, 4)
    return Call(ids, table, 21, domains, 3, top_k=4)


@pytest.mark.interpret
@every_index_dtype
@pytest.mark.parametrize("vocabulary", [None, 6])
def test_whatever_is_out_of_range_is_padding(vocabulary, dtype):
    """On a device no one looks at the values; on the CPU the operator would refuse them."""
    from triselect.kernels.table_route import triton

    call = wild_call(dtype, vocabulary)
    with np.errstate(over="ignore"):
        weights, experts = reference.table_route(*call.arrays())
    got = triton.table_route(*call)
    np.testing.assert_array_equal(got[0], weights)
    np.testing.assert_array_equal(got[1], experts)
    assert 0 < (experts < 0).sum() < experts.size


@pytest.mark.interpret
def test_offsets_beyond_32_bits():
    """Rows of the table 2**30 apart; NumPy's memory costs nothing until it is written."""
    far = torch.from_numpy(np.empty(3 * 2**30 + 4, np.int32))
    table = far.as_strided((4, 3), (2**30, 1))
    call = random_call(21, 4, dtype=torch.int32)
    table.copy_(call.table)
    assert_same_routing(interpreted(*call._replace(table=table)), call)


@pytest.mark.interpret
def test_no_tokens_launch_nothing(monkeypatch):
    from triselect.kernels.table_route import triton

    monkeypatch.setattr(triton, "route_by_table", None)
    call = random_call(0, groups=2, logits=torch.float32)
    assert_same_routing(interpreted(*call), call)


@pytest.mark.gpu
@every_dtype
@every_scoring
@pytest.mark.parametrize("vocabulary", [None, 1000])
def test_a_long_prompt(vocabulary, scoring_func, dtype):
    call = random_call(
        16387, vocabulary, 6, 4, 64, logits=dtype, scoring_func=scoring_func, renormalize=True
    )
    assert_same_routing(on_device(*call), call)


@pytest.mark.gpu
@pytest.mark.parametrize("vocabulary", [None, 6])
def test_wild_values_on_the_device(vocabulary):
    call = wild_call(torch.int64, vocabulary)
    with np.errstate(over="ignore"):
        expected = reference.table_route(*call.arrays())
    for mine, theirs in zip(on_device(*call), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("vocabulary", [None, 1000])
@pytest.mark.parametrize("scoring_func", ["softmax", "sqrt_softplus"])
def test_one_launch(vocabulary, scoring_func):
    call = random_call(100, vocabulary, 6, 4, 64, logits=torch.float32, scoring_func=scoring_func)
    assert launches(triselect.table_route, **call._asdict()) == ["route_by_table"]


@pytest.mark.gpu
def test_a_captured_graph_routes_new_ids():
    call = Call(*map(on_gpu, random_call(33, logits=torch.float32)))
    triselect.table_route(**call._asdict())  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = triselect.table_route(**call._asdict())
    for seed in range(1, 4):
        call.token_ids.copy_(random_call(33, seed=seed).token_ids)
        graph.replay()
        assert_bits(got, triselect.table_route(**call._asdict()))
