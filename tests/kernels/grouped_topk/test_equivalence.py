"""Every backend routes as the float64 reference does, whatever the model, dtype or layout."""

import numpy as np
import pytest
import torch

from ..backends import LAYOUTS, assert_bits, every_dtype
from .cases import SETTINGS, Setting, every_backend, every_scoring, every_setting, inputs, moge
from .compare import assert_same_routing

# Blocks of 16 tokens or lanes, with none, one too few, one too many.
TOKENS = (0, 1, 2, 5, 15, 16, 17, 33, 1000)
FEW = ("pangu-pro", "moge-60", "deepseek-v3", "qwen3", "limited-balanced-top2")


@every_backend
@every_setting
@every_dtype
def test_models(backend, setting, dtype):
    logits, options = inputs(setting, 67, dtype)
    assert_same_routing(backend(logits, **options), logits, options)


@every_backend
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("name", FEW)
def test_token_counts(backend, name, tokens):
    logits, options = inputs(SETTINGS[name], tokens, seed=tokens)
    assert_same_routing(backend(logits, **options), logits, options)


@pytest.mark.slow
@every_backend
@every_setting
@every_dtype
def test_many_tokens(backend, setting, dtype):
    logits, options = inputs(setting, 4099, dtype)
    assert_same_routing(backend(logits, **options), logits, options)


@pytest.mark.slow
@every_backend
@pytest.mark.parametrize("experts", [1024, 4096])
def test_many_experts(backend, experts):
    """However many scores a softmax adds up, its error is that of plain PyTorch."""
    for setting in (moge(experts, 8, 1), Setting(experts, {"top_k": 8})):
        logits, options = inputs(setting, 3000)
        assert_same_routing(backend(logits, **options), logits, options)


@every_backend
@pytest.mark.parametrize("experts", [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 65, 100, 127, 129, 1000])
@every_scoring
def test_expert_counts(backend, experts, scoring_func):
    rng = np.random.default_rng(experts)
    logits = torch.from_numpy(rng.standard_normal((19, experts), dtype=np.float32))
    bias = torch.from_numpy(rng.standard_normal(experts, dtype=np.float32))
    for top_k in {1, min(experts, 6), min(experts, 33)}:
        for e_score_correction_bias in (None, bias):
            options = {
                "top_k": top_k,
                "scoring_func": scoring_func,
                "e_score_correction_bias": e_score_correction_bias,
            }
            assert_same_routing(backend(logits, **options), logits, options)


@every_backend
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FEW)
def test_layouts(backend, name, layout, dtype):
    """Strides are only a way to store the same numbers: bit-equal, not merely close."""
    logits, options = inputs(SETTINGS[name], 21, dtype)
    got = backend(logits, layout=layout, **options)
    logits = LAYOUTS[layout](logits).contiguous()
    assert_same_routing(got, logits, options)
    assert_bits(got, backend(logits, **options))


@every_backend
@every_dtype
def test_vectors_of_any_stride_and_dtype(backend, dtype):
    logits, options = inputs(SETTINGS["deepseek-v3"], 21)
    vectors = torch.stack((options["e_score_correction_bias"], 1 + torch.rand(256)), 1).to(dtype)
    options |= {"e_score_correction_bias": vectors[:, 0], "expert_scale": vectors[:, 1]}
    assert_same_routing(backend(logits, **options), logits, options)


@every_backend
@every_setting
def test_a_token_is_routed_alone_as_in_any_batch(backend, setting):
    logits, options = inputs(setting, 50)
    whole = backend(logits, **options)
    for rows in (slice(1), slice(7, 8), slice(49, 50), slice(3, 20), slice(16, 49)):
        assert_bits(backend(logits[rows], **options), [t[rows] for t in whole])


@every_backend
@pytest.mark.parametrize("experts", [3, 13, 60])
@every_scoring
@pytest.mark.parametrize("renormalize", [False, True])
def test_a_token_is_routed_alone_as_in_a_batch_of_odd_rows(
    backend, experts, scoring_func, renormalize
):
    """Rows that are no multiple of a vector: the last elements of a batch go a way of their own."""
    rng = np.random.default_rng(experts)
    logits = torch.from_numpy(3 * rng.standard_normal((99, experts), dtype=np.float32))
    options = {"top_k": 3, "scoring_func": scoring_func, "renormalize": renormalize}
    whole = backend(logits, **options)
    for token in range(len(logits)):
        alone = backend(logits[token : token + 1], **options)
        assert_bits(alone, [t[token : token + 1] for t in whole])


@every_backend
@every_setting
def test_the_same_bits_every_time(backend, setting):
    logits, options = inputs(setting, 300)
    assert_bits(backend(logits, **options), backend(logits.clone(), **options))


@every_backend
@pytest.mark.parametrize("balanced", [False, True])
def test_subnormal_keys_are_ordered(backend, balanced):
    """A flushed subnormal would tie with zero, and the lower index would win."""
    row = torch.tensor([-1e-45, 0.0, 1e-45, 3e-45] * 3 + [-3e-45, -1e-45, -0.0, 0.0])
    logits = torch.stack((row, row.flip(0)))
    options = {"top_k": 8, "num_expert_group": 4, "balanced": balanced, "scoring_func": "identity"}
    assert_same_routing(backend(logits, **options), logits, options)


@every_backend
@every_scoring
@pytest.mark.parametrize("renormalize", [False, True])
def test_large_logits_do_not_overflow(backend, scoring_func, renormalize):
    logits = torch.tensor(
        [[1e38, -1e38, 80.0, 0.0], [100, 88.8, 88.6, -104], [-90, -95, -100, -3e38]]
    )
    options = {"top_k": 3, "scoring_func": scoring_func, "renormalize": renormalize}
    assert_same_routing(backend(logits, **options), logits, options)
