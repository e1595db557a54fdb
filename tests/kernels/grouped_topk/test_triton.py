"""The Triton kernels: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run it too, at any size (test_equivalence, test_properties).
"""

import numpy as np
import pytest
import torch

import triselect

from ..backends import assert_bits
from ..launches import launches, on_gpu
from .cases import LAYOUTS, SETTINGS, Backend, every_dtype, every_scoring, every_setting, inputs
from .compare import assert_same_routing
from .gradients import Upstream, assert_gradients
from .test_backward import every_sum, gradients, random_call

# Infinite logits are meant to go through, which NumPy, the interpreter's engine, warns about.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

interpreted = Backend("triton", "cpu")
on_device = Backend("triton", "cuda")

# One of every way through the kernel: groups in lanes, in registers, padded, ranked; two stages.
FEW = ("pangu-pro", "moge-60", "deepseek-v2", "deepseek-v3", "kimi-k2", "limited-balanced-top2")


@pytest.mark.interpret
@every_setting
@every_dtype
def test_models(setting, dtype):
    logits, options = inputs(setting, 5, dtype)
    assert_same_routing(interpreted(logits, **options), logits, options, clear_share=0.8)


@pytest.mark.interpret
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FEW)
def test_layouts(name, layout):
    logits, options = inputs(SETTINGS[name], 5, torch.bfloat16)
    got = interpreted(logits, layout=layout, **options)
    assert_same_routing(got, LAYOUTS[layout](logits), options, clear_share=0.8)


@pytest.mark.interpret
@every_dtype
def test_vectors_of_any_stride_and_dtype(dtype):
    logits, options = inputs(SETTINGS["deepseek-v3"], 5)
    vectors = torch.stack((options["e_score_correction_bias"], 1 + torch.rand(256)), 1).to(dtype)
    options |= {"e_score_correction_bias": vectors[:, 0], "expert_scale": vectors[:, 1]}
    assert_same_routing(interpreted(logits, **options), logits, options, clear_share=0.8)


@pytest.mark.interpret
@every_dtype
@pytest.mark.parametrize("values", [[0.0, 1.0], [-np.inf, np.nan], [np.nan, -1.0], [np.inf, 0.5]])
@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3", "kimi-k2", "sqrt-softplus"])
def test_ties_among_many_experts(name, values, dtype):
    """Whole vectors tie here, as well as experts: the first of each must win."""
    setting = SETTINGS[name]
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.choice(values, (3, setting.experts))).to(dtype)
    options = {"e_score_correction_bias": torch.zeros(setting.experts)} if setting.bias else {}
    options |= setting.options
    assert_same_routing(interpreted(logits, **options), logits, options, clear_share=0)


@pytest.mark.interpret
@every_dtype
@pytest.mark.parametrize("name", ["deepseek-v2", "identity"])
def test_an_expert_at_minus_infinity_comes_before_an_excluded_group(name, dtype):
    setting = SETTINGS[name]
    groups, kept = (setting.options[key] for key in ("num_expert_group", "topk_group"))
    logits = torch.full((1, groups, setting.experts // groups), -1.0)
    logits[:, -kept:] = -torch.inf
    logits[:, -kept:, 0] = 5
    logits = logits.flatten(1).to(dtype)
    assert_same_routing(interpreted(logits, **setting.options), logits, setting.options)


@pytest.mark.interpret
@pytest.mark.parametrize("shape", [(3, 4), (4, 3)], ids=["tokens", "experts"])
def test_offsets_beyond_32_bits(shape):
    """Rows, or experts, 2**30 elements apart; NumPy's memory costs nothing until it is written."""
    far = torch.from_numpy(np.empty(3 * 2**30 + 4, np.float16))
    strides = (2**30, 1) if shape[0] == 3 else (1, 2**30)
    logits = far.as_strided(shape, strides)
    logits.copy_(torch.randn(shape))
    options = {"top_k": 2}
    assert_same_routing(interpreted(logits, **options), logits, options)


@pytest.mark.interpret
def test_no_tokens_launch_nothing(monkeypatch):
    from triselect.kernels.grouped_topk.triton import route

    monkeypatch.setattr(route, "route", None)
    weights, experts = interpreted(torch.empty(0, 64), top_k=8, num_expert_group=8, balanced=True)
    assert weights.shape == experts.shape == (0, 8)


def backward(call: Upstream, layouts: tuple[str, ...] = ()):
    return gradients(call, layouts, backend="triton")


@pytest.fixture
def few_logits(monkeypatch):
    """Tiles of few tokens, and so few programs that each has several of them."""
    from triselect.kernels.grouped_topk.triton import backward

    monkeypatch.setattr(backward, "TILE", 64)
    monkeypatch.setattr(backward, "PROGRAMS", 2)


@pytest.mark.interpret
@every_scoring
@every_sum
@pytest.mark.parametrize("scale", [True, False], ids=["scaled", "unscaled"])
def test_gradients(few_logits, scoring_func, renormalize, scale):
    """Also of padding, and of experts that come twice or more."""
    for distinct in (True, False):
        call = random_call(
            scoring_func, renormalize, 9, padding=0.3, distinct=distinct, scale=scale
        )
        assert_gradients(backward(call), call)


@pytest.mark.interpret
@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["grad", "logits", "experts"])
@pytest.mark.parametrize("layout", ["sliced", "expanded"])
def test_gradients_of_any_stride(few_logits, scoring_func, which, layout):
    call = random_call(scoring_func, tokens=5)
    layouts = ["contiguous"] * 3
    layouts[which] = layout
    same = list(call)
    same[which] = LAYOUTS[layout](call[which]).contiguous()
    assert_bits(backward(call, layouts), backward(Upstream(*same)))


@pytest.mark.interpret
@every_scoring
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_gradients_in_low_precision_are_rounded_once(scoring_func):
    """In float16: the interpreter makes bfloat16 by cutting bits off."""
    low = random_call(scoring_func, dtype=torch.float16, tokens=5, experts=40)
    low = low._replace(expert_scale=low.expert_scale.half())
    exact = low._replace(logits=low.logits.float(), expert_scale=low.expert_scale.float())
    assert_bits(backward(low), tuple(t.half() for t in backward(exact)))


def masked_call(scoring_func: str, low: float, **options) -> tuple[Upstream, torch.Tensor]:
    """One expert in three is masked everywhere, and for the first token all of them are."""
    call = random_call(scoring_func, tokens=4, **options)
    masked = (torch.arange(24) % 3 == 0).repeat(4, 1)
    masked[0] = True
    call.logits[masked] = low
    return call, masked


@pytest.mark.interpret
@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid", "sqrt_softplus"])
def test_masked_experts_have_no_gradient(scoring_func):
    call, masked = masked_call(scoring_func, -torch.inf)
    got, d_scale = backward(call)
    assert got.isfinite().all()
    assert d_scale.isfinite().all()
    assert (got[1:][~masked[1:]] != 0).any()
    if scoring_func == "softmax":
        masked = masked[1:]  # of nothing but -inf all experts share the mass
    assert (got[-len(masked) :][masked] == 0).all()


@pytest.mark.interpret
@every_scoring
@every_sum
def test_nan_counts_as_minus_infinity(scoring_func, renormalize):
    nan, low = (
        masked_call(scoring_func, value, renormalize=renormalize)[0]
        for value in (torch.nan, -torch.inf)
    )
    assert_bits(backward(nan), backward(low))


@pytest.mark.interpret
def test_experts_out_of_range_are_padding():
    call = random_call(tokens=6, padding=0.3)
    wild = call.experts.clone()
    wild[wild < 0] = torch.tensor([24, -2, 2**31 - 1, -(2**31)], dtype=torch.int32).repeat(9)[
        : (wild < 0).sum()
    ]
    assert_bits(backward(call._replace(experts=wild)), backward(call))


@pytest.mark.interpret
def test_no_tokens_have_no_gradient(monkeypatch):
    from triselect.kernels.grouped_topk.triton import backward as module

    monkeypatch.setattr(module, "backward", None)
    d_logits, d_scale = backward(random_call(tokens=0))
    assert d_logits.shape == (0, 24)
    assert d_scale.tolist() == [0] * 24


try:
    from .strategies import Case, cases, given, random, settings, tied
except pytest.skip.Exception:  # hypothesis is not installed
    pass
else:

    @pytest.mark.interpret
    @given(case=cases(random, max_tokens=6))
    @settings(max_examples=25)
    def test_random_logits(case: Case):
        got = interpreted(case.logits, layout=case.layout, **case.options)
        assert_same_routing(got, case.logits, case.options, clear_share=0)

    @pytest.mark.interpret
    @given(case=cases(tied, max_tokens=6))
    @settings(max_examples=25)
    def test_tied_and_infinite_logits(case: Case):
        got = interpreted(case.logits, layout=case.layout, **case.options)
        assert_same_routing(got, case.logits, case.options, clear_share=0)


@pytest.mark.gpu
@every_dtype
@pytest.mark.parametrize("name", FEW)
def test_a_long_prompt(name, dtype):
    logits, options = inputs(SETTINGS[name], 16387, dtype)
    assert_same_routing(on_device(logits, **options), logits, options)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FEW)
def test_one_launch(name):
    logits, options = inputs(SETTINGS[name], 100)
    assert launches(triselect.grouped_topk, logits, **options) == ["route"]


@pytest.mark.gpu
def test_one_launch_back():
    found = launches(lambda *args: backward(Upstream(*args)), *random_call(scale=False))
    assert found == ["backward"]


@pytest.mark.gpu
@every_scoring
def test_gradients_of_a_long_prompt(scoring_func):
    """More tiles than programs: each adds up several."""
    call = random_call(scoring_func, tokens=16387, experts=160, top_k=6)
    got = backward(Upstream(*map(on_gpu, call)))
    assert_gradients(tuple(t.cpu() for t in got), call)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FEW)
def test_a_captured_graph_routes_new_logits(name):
    setting = SETTINGS[name]
    logits, options = inputs(setting, 33)
    there = {name: on_gpu(value) for name, value in options.items()}
    static = logits.cuda()
    triselect.grouped_topk(static, **there)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = triselect.grouped_topk(static, **there)
    for seed in range(1, 4):
        logits, _ = inputs(setting, 33, seed=seed)
        static.copy_(logits)
        graph.replay()
        assert_same_routing(got, logits, options)


@pytest.mark.gpu
def test_outputs_beyond_32_bits():
    tokens = 2**28 + 5
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    torch.use_deterministic_algorithms(False)  # no time to fill them first
    row = torch.randn(1, 8)
    options = {"top_k": 8}
    got = triselect.grouped_topk(row.cuda().expand(tokens, -1), **options)
    ends = [torch.cat((t[:1], t[2**27 : 2**27 + 1], t[-1:])) for t in got]
    assert_same_routing(ends, row.expand(3, -1), options)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(3, 4), (4, 3)], ids=["tokens", "experts"])
def test_offsets_beyond_32_bits_on_the_device(shape):
    if torch.cuda.mem_get_info()[0] < 8 * 2**30:
        pytest.skip("needs 8 GiB of free GPU memory")
    torch.use_deterministic_algorithms(False)
    far = torch.empty(3 * 2**30 + 4, dtype=torch.float16, device="cuda")
    strides = (2**30, 1) if shape[0] == 3 else (1, 2**30)
    logits = far.as_strided(shape, strides)
    logits.copy_(torch.randn(shape))
    options = {"top_k": 2}
    assert_same_routing(triselect.grouped_topk(logits, **options), logits, options)
