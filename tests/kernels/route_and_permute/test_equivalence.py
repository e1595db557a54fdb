"""One operator gives what two give on the same backend, bit for bit, and what both mean."""

import numpy as np
import pytest
import torch

from ..backends import LAYOUTS, assert_bits, every_dtype
from ..grouped_topk.cases import SETTINGS, every_setting, inputs, limited, moge
from ..grouped_topk.compare import assert_same_routing
from ..permute.cases import assert_same_permutation
from .cases import apart, every_backend

TOKENS = (0, 1, 15, 16, 17, 300)
FEW = ("pangu-pro", "deepseek-v3", "limited-balanced-top2")


def assert_as_apart(backend, logits, **options):
    got = backend(logits, **options)
    assert_bits(got, backend._replace(function=apart)(logits, **options))
    return got


def assert_as_meant(got, logits, options, **share):
    """The two apart might be wrong in the same way, were they not compared themselves."""
    assert_same_routing(got.routing, logits, options, **share)
    assert_same_permutation(got.permutation, got.experts, logits.shape[1])


@every_backend
@every_setting
@every_dtype
def test_models(backend, setting, dtype):
    logits, options = inputs(setting, 67, dtype)
    assert_as_meant(assert_as_apart(backend, logits, **options), logits, options)


@every_backend
@every_setting
@pytest.mark.parametrize("tokens", TOKENS)
def test_token_counts(backend, setting, tokens):
    logits, options = inputs(setting, tokens, seed=tokens)
    got = assert_as_apart(backend, logits, **options)
    assert_same_permutation(got.permutation, got.experts, setting.experts)


@every_backend
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FEW)
def test_layouts(backend, name, layout, dtype):
    logits, options = inputs(SETTINGS[name], 21, dtype)
    got = assert_as_apart(backend, logits, layout=layout, **options)
    assert_as_meant(got, LAYOUTS[layout](logits).contiguous(), options)


@every_backend
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("tokens", [1000, pytest.param(16384, marks=pytest.mark.slow)])
def test_a_long_prompt(backend, name, tokens):
    logits, options = inputs(SETTINGS[name], tokens)
    got = assert_as_apart(backend, logits, **options)
    assert_same_permutation(got.permutation, got.experts, logits.shape[1])
    assert_bits(got, backend(logits.clone(), **options))


@every_backend
def test_vectors_of_any_stride_and_dtype(backend):
    logits, options = inputs(SETTINGS["deepseek-v3"], 21)
    vectors = torch.stack((options["e_score_correction_bias"], 1 + torch.rand(256)), 1).bfloat16()
    options |= {"e_score_correction_bias": vectors[:, 0], "expert_scale": vectors[:, 1]}
    assert_as_meant(assert_as_apart(backend, logits, **options), logits, options)


@every_backend
@pytest.mark.parametrize("tokens", [1, 16, 33, 300])
@pytest.mark.parametrize(
    "setting",
    [moge(64, 8, 1), moge(60, 5, 3), moge(24, 4, 2), limited(64, 8, 8, 16, balanced=True)],
    ids=["64-8", "60-5", "24-4", "64-8-two-each"],
)
def test_balanced_groups_have_rows_of_the_same_number(backend, setting, tokens):
    """T * K' each, where the rows of group g begin at g * T * K', whatever the skew."""
    groups = setting.options["num_expert_group"]
    skew = np.random.default_rng(1).standard_normal(setting.experts, dtype=np.float32)
    logits, options = inputs(setting, tokens)
    skewed = logits + 4 * torch.from_numpy(skew)
    _, experts, source, slot_of, offsets = backend(skewed, **options)
    rows = tokens * options["top_k"] // groups
    bounds = offsets[:: setting.experts // groups]
    assert bounds.tolist() == [group * rows for group in range(groups + 1)]
    in_order = torch.arange(tokens, dtype=torch.int32).repeat_interleave(rows // tokens)
    for group in range(groups):
        own = slice(group * rows, (group + 1) * rows)
        assert torch.equal(source[own].sort().values, in_order)
    assert torch.equal(slot_of.flatten().sort().values, torch.arange(len(source)).int())
    assert experts.shape == slot_of.shape
