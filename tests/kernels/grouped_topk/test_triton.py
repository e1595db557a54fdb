"""The Triton kernel: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run it too, at any size (test_equivalence, test_properties).
"""

import numpy as np
import pytest
import torch

import triselect

from .cases import LAYOUTS, SETTINGS, Backend, every_dtype, every_setting, inputs
from .compare import assert_same_routing

# Infinite logits are meant to go through, which NumPy, the interpreter's engine, warns about.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

interpreted = Backend("triton", "cpu")
on_gpu = Backend("triton", "cuda")

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
    from triselect.kernels.grouped_topk import triton

    monkeypatch.setattr(triton, "route", None)
    weights, experts = interpreted(torch.empty(0, 64), top_k=8, num_expert_group=8, balanced=True)
    assert weights.shape == experts.shape == (0, 8)


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
    assert_same_routing(on_gpu(logits, **options), logits, options)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FEW)
def test_one_launch(name):
    logits, options = inputs(SETTINGS[name], 100)
    logits = logits.cuda()
    options = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    triselect.grouped_topk(logits, **options)
    torch.cuda.synchronize()
    # Deterministic mode would fill the outputs, one launch each.
    torch.use_deterministic_algorithms(False)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        triselect.grouped_topk(logits, **options)
        torch.cuda.synchronize()
    device = torch.autograd.DeviceType.CUDA
    kernels = [event.name for event in profile.events() if event.device_type == device]
    assert [name for name in kernels if "route" in name] == kernels
    assert len(kernels) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", FEW)
def test_a_captured_graph_routes_new_logits(name):
    setting = SETTINGS[name]
    logits, options = inputs(setting, 33)
    on_device = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    static = logits.cuda()
    triselect.grouped_topk(static, **on_device)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = triselect.grouped_topk(static, **on_device)
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
