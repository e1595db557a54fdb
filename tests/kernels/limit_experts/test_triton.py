"""The Triton kernels: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run them too (test_equivalence, test_properties).
"""

from contextlib import ExitStack
from unittest import mock

import numpy as np
import pytest
import torch
from triselect.kernels.limit_experts import reference

import triselect

from ..backends import LAYOUTS, Backend, assert_bits, every_dtype
from ..grouped_topk.cases import SETTINGS, inputs
from ..launches import launches, on_gpu
from .cases import assert_limited, every_scope, in_order, limit, some_budgets

# Infinite logits are meant to go through, which NumPy, the interpreter's engine, warns about.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

interpreted = Backend(limit, "triton", "cpu")
on_device = Backend(limit, "triton", "cuda")

# Which tokens go which way, and what must not be launched on it.
WAYS = {
    "one launch": {"ONE_LAUNCH_TILES": 99, "choose": None},
    "three launches": {"ONE_LAUNCH_TILES": 0, "limit": None},
}
FEW = ("moge-60", "limited-balanced-top2", "identity")


def going(way: str):
    """That way with the smallest of tiles, and votes added up in several steps."""
    from triselect.kernels.grouped_topk.triton import segments
    from triselect.kernels.limit_experts import triton

    stack = ExitStack()
    stack.enter_context(mock.patch.multiple(triton, WARPS=1, ADDED=1, **WAYS[way]))
    stack.enter_context(mock.patch.multiple(segments, WARPS=1, SEGMENTS=2))
    return stack


every_way = pytest.mark.parametrize("way", WAYS)


@pytest.mark.interpret
@every_way
@every_scope
@pytest.mark.parametrize("name", FEW)
def test_models(way, name, per_group):
    logits, options = inputs(SETTINGS[name], 13)
    for budget in some_budgets(SETTINGS[name], per_group)[:2]:
        with going(way):
            got = interpreted(logits, budget=budget, per_group=per_group, **options)
        assert_limited(interpreted, got, logits, budget, per_group, options)


@pytest.mark.interpret
@every_way
@pytest.mark.parametrize("name", ["deepseek-v3", "kimi-k2"])
def test_bias_and_many_experts(way, name):
    """Also those whose candidates come from vectors, of which here some hold nothing allowed."""
    logits, options = inputs(SETTINGS[name], 9)
    budget = some_budgets(SETTINGS[name], False)[0]
    with going(way):
        got = interpreted(logits, budget=budget, per_group=False, **options)
    assert_limited(interpreted, got, logits, budget, False, options, clear_share=0.8)


@pytest.mark.interpret
@every_way
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 20)], ids=["plain", "biased"])
def test_one_expert_of_a_group_is_its_score(way, bias):
    """Where the group's score is the sum of two, and one is left."""
    logits = torch.randn(13, 20, generator=torch.Generator().manual_seed(0))
    options = {"top_k": 2, "num_expert_group": 4, "topk_group": 2, "group_score": "top2_sum"}
    options |= {"e_score_correction_bias": bias, "scoring_func": "sigmoid"}
    with going(way):
        got = interpreted(logits, budget=1, **options)
    assert_limited(interpreted, got, logits, 1, True, options)


@pytest.mark.interpret
@every_way
@every_scope
@pytest.mark.parametrize("values", [[0.0, 1.0], [-np.inf, np.nan], [np.inf, 0.5]])
def test_ties(way, per_group, values):
    """Of logits and of votes: everywhere the first wins."""
    setting = SETTINGS["limited-balanced-top2"]
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.choice(values, (11, setting.experts))).float()
    budget = some_budgets(setting, per_group)[1]
    with going(way):
        got = interpreted(logits, budget=budget, per_group=per_group, **setting.options)
    assert_limited(interpreted, got, logits, budget, per_group, setting.options, clear_share=0)


@pytest.mark.interpret
@every_way
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(way, layout):
    logits, options = inputs(SETTINGS["moge-60"], 9, torch.bfloat16)
    with going(way):
        got = interpreted(logits, budget=5, layout=layout, **options)
    assert_limited(interpreted, got, LAYOUTS[layout](logits), 5, True, options, clear_share=0)


@pytest.mark.interpret
@every_scope
def test_no_tokens_keep_the_first_experts(per_group):
    logits, options = inputs(SETTINGS["moge-60"], 0)
    budget = some_budgets(SETTINGS["moge-60"], per_group)[1]
    got = interpreted(logits, budget=budget, per_group=per_group, **options)
    assert got.weights.shape == got.experts.shape == (0, 15)
    kept = reference.limit_experts(logits.numpy(), *in_order(options), budget, per_group)[2]
    np.testing.assert_array_equal(got.kept, kept)


@pytest.mark.interpret
def test_more_experts_than_a_program_has_threads():
    logits = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0))
    for budget in (16, 40):
        with going("three launches"):
            got = interpreted(logits, top_k=16, budget=budget)
        assert_limited(interpreted, got, logits, budget, True, {"top_k": 16})


try:
    from .strategies import limited_cases, random, tied
except pytest.skip.Exception:  # hypothesis is not installed
    pass
else:
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @pytest.mark.interpret
    @given(
        drawn=limited_cases(random, max_tokens=9) | limited_cases(tied, max_tokens=9),
        way=st.sampled_from(list(WAYS)),
    )
    @settings(max_examples=20)
    def test_random_logits(drawn, way):
        case, budget, per_group = drawn
        if not len(case.logits):
            way = "three launches"
        with going(way):
            got = interpreted(
                case.logits,
                budget=budget,
                per_group=per_group,
                layout=case.layout,
                **case.options,
            )
        assert_limited(
            interpreted, got, case.logits, budget, per_group, case.options, clear_share=0
        )


@pytest.mark.gpu
@every_scope
@every_dtype
@pytest.mark.parametrize("tokens", [1, 64, 1000, 16387])
@pytest.mark.parametrize("name", SETTINGS)
def test_batches(name, tokens, dtype, per_group):
    logits, options = inputs(SETTINGS[name], tokens, dtype)
    budget = some_budgets(SETTINGS[name], per_group)[1]
    got = on_device(logits, budget=budget, per_group=per_group, **options)
    assert_limited(on_device, got, logits, budget, per_group, options, clear_share=0.5)


@pytest.mark.gpu
def test_launches():
    def found(tokens):
        logits, options = inputs(SETTINGS["pangu-pro"], tokens)
        return launches(triselect.limit_experts, logits, budget=5, **options)

    assert found(16) == ["limit"]
    assert found(4096) == ["route_segment", "choose", "route"]


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [16, 1000])
def test_a_captured_graph_routes_new_logits(tokens):
    logits, options = inputs(SETTINGS["pangu-pro"], tokens)
    there = {name: on_gpu(value) for name, value in options.items()}
    static = logits.cuda()
    triselect.limit_experts(static, budget=5, **there)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = triselect.limit_experts(static, budget=5, **there)
    for seed in range(1, 4):
        static.copy_(inputs(SETTINGS["pangu-pro"], tokens, seed=seed)[0])
        graph.replay()
        assert_bits(got, triselect.limit_experts(static, budget=5, **there))
