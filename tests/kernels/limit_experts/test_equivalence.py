"""Every backend keeps the experts that the reference keeps, and routes over them as it does."""

import pytest
import torch

from ..backends import LAYOUTS, assert_bits
from ..grouped_topk.cases import SETTINGS, Setting, every_setting, inputs
from .cases import assert_limited, every_backend, every_scope, some_budgets

FEW = ("pangu-pro", "deepseek-v3", "limited-balanced-top2")
low_and_full = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)


@every_backend
@every_setting
@low_and_full
@every_scope
def test_models(backend, setting, dtype, per_group):
    """From the least budget to one less than all, which test_invariants looks at."""
    logits, options = inputs(setting, 17, dtype)
    for budget in some_budgets(setting, per_group)[:-1:2]:
        got = backend(logits, budget=budget, per_group=per_group, **options)
        assert_limited(backend, got, logits, budget, per_group, options)


@every_backend
@every_scope
@pytest.mark.parametrize("tokens", [0, 1, 2, 15, 16, 17, 333])
@pytest.mark.parametrize("name", FEW)
def test_token_counts(backend, name, tokens, per_group):
    setting = SETTINGS[name]
    logits, options = inputs(setting, tokens, seed=tokens)
    budget = some_budgets(setting, per_group)[1]
    got = backend(logits, budget=budget, per_group=per_group, **options)
    assert_limited(backend, got, logits, budget, per_group, options)


@every_backend
@every_scope
@pytest.mark.parametrize("experts", [1, 2, 7, 16, 33, 300])
def test_expert_counts(backend, experts, per_group):
    for top_k in {1, min(experts, 6)}:
        setting = Setting(experts, {"top_k": top_k})
        logits, options = inputs(setting, 19)
        for budget in some_budgets(setting, per_group)[:3]:
            got = backend(logits, budget=budget, per_group=per_group, **options)
            assert_limited(backend, got, logits, budget, per_group, options)


@every_backend
@low_and_full
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FEW)
def test_layouts(backend, name, layout, dtype):
    setting = SETTINGS[name]
    logits, options = inputs(setting, 21, dtype)
    budget = some_budgets(setting, True)[0]
    got = backend(logits, budget=budget, layout=layout, **options)
    logits = LAYOUTS[layout](logits).contiguous()
    assert_limited(backend, got, logits, budget, True, options, clear_share=0.8)
    assert_bits(got, backend(logits, budget=budget, **options))


@every_backend
@pytest.mark.slow
@every_scope
@pytest.mark.parametrize("experts", [1024, 4096])
def test_many_experts(backend, experts, per_group):
    setting = Setting(experts, {"top_k": 8, "num_expert_group": 8, "balanced": True})
    logits, options = inputs(setting, 300)
    for budget in some_budgets(setting, per_group):
        got = backend(logits, budget=budget, per_group=per_group, **options)
        assert_limited(backend, got, logits, budget, per_group, options)


@every_backend
@every_setting
def test_the_same_bits_every_time(backend, setting):
    logits, options = inputs(setting, 300)
    budget = some_budgets(setting, True)[0]
    once, again = (backend(x, budget=budget, **options) for x in (logits, logits.clone()))
    assert_bits(once, again)


@every_backend
def test_vectors_of_any_stride_and_dtype(backend):
    logits, options = inputs(SETTINGS["deepseek-v3"], 21)
    vectors = torch.stack((options["e_score_correction_bias"], 1 + torch.rand(256)), 1).bfloat16()
    options |= {"e_score_correction_bias": vectors[:, 0], "expert_scale": vectors[:, 1]}
    got = backend(logits, budget=9, **options)
    assert_limited(backend, got, logits, 9, True, options)
