"""What must hold of any routing, with no reference in sight."""

import numpy as np
import pytest
import torch

from ..backends import every_dtype
from .cases import (
    SETTINGS,
    Setting,
    every_backend,
    every_scoring,
    every_setting,
    inputs,
    limited,
    moge,
)

MOGE = [moge(64, 8, 1), moge(80, 8, 1), moge(60, 5, 3), moge(144, 9, 1), moge(24, 4, 2)]
every_moge = pytest.mark.parametrize(
    "setting", MOGE, ids=lambda s: f"{s.experts}-{s.options['num_expert_group']}"
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def distinct(tokens: int, experts: int, seed: int = 0) -> torch.Tensor:
    """Logits without ties: a ladder of eighths, shuffled in every row."""
    ladder = np.tile(np.arange(experts, dtype=np.float32) / 8 - 4, (tokens, 1))
    return torch.from_numpy(rng(seed).permuted(ladder, axis=1))


def stable_sort(logits: torch.Tensor, k: int) -> torch.Tensor:
    return logits.float().sort(dim=-1, descending=True, stable=True).indices[:, :k].int()


@every_backend
@every_setting
def test_slots_are_distinct_experts_in_order(backend, setting):
    logits, options = inputs(setting, 100)
    experts = backend(logits, **options).experts.long()
    assert experts.min() >= 0
    assert experts.max() < setting.experts
    assert (experts.sort(-1).values.diff(dim=-1) > 0).all()
    if "e_score_correction_bias" not in options:
        keys = logits.gather(1, experts)
        groups = experts // (setting.experts // options.get("num_expert_group", 1))
        if options.get("balanced"):
            assert (groups.diff(dim=-1) >= 0).all()
            assert ((keys.diff(dim=-1) <= 0) | (groups.diff(dim=-1) > 0)).all()
        else:
            assert (keys.diff(dim=-1) <= 0).all()


@every_backend
@every_dtype
def test_one_per_group_is_the_argmax_of_every_group(backend, dtype):
    logits, options = inputs(SETTINGS["pangu-pro"], 200, dtype)
    expected = logits.float().view(-1, 8, 8).argmax(-1) + 8 * torch.arange(8)
    torch.testing.assert_close(backend(logits, **options).experts.long(), expected)


@every_backend
@every_dtype
@pytest.mark.parametrize("balanced", [False, True])
def test_one_group_is_a_stable_sort(backend, dtype, balanced):
    """Two hundred tokens in bfloat16 have ties enough."""
    logits, options = inputs(Setting(300, {"top_k": 17, "balanced": balanced}), 200, dtype)
    torch.testing.assert_close(backend(logits, **options).experts, stable_sort(logits, 17))


@every_backend
@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_ties_go_to_the_lowest_index(backend, k):
    """Integers 0 to 3 over 64 experts: hardly a row without a tie at its boundary."""
    logits = torch.from_numpy(rng(k).integers(0, 4, (300, 64)).astype(np.float32))
    torch.testing.assert_close(backend(logits, top_k=k).experts, stable_sort(logits, k))
    picked = stable_sort(logits.view(-1, 8), k).view(300, 8, k)
    expected = (picked + 8 * torch.arange(8, dtype=torch.int32)[:, None]).view(300, 8 * k)
    got = backend(logits, top_k=8 * k, num_expert_group=8, balanced=True).experts
    torch.testing.assert_close(got, expected)


@every_backend
@every_scoring
@pytest.mark.parametrize(("tokens", "experts"), [(1, 20), (3, 13), (1, 61), (3, 64)])
def test_equal_keys_under_a_bias_are_ties(backend, scoring_func, tokens, experts):
    """Equal logits make equal scores wherever they stand, also in the tail of a vector loop."""
    bias = torch.full((experts,), 0.25)
    for value in 4 * rng(1).standard_normal(150, dtype=np.float32):
        logits = torch.full((tokens, experts), float(value))
        options = {"scoring_func": scoring_func, "e_score_correction_bias": bias}
        got = backend(logits, top_k=4, **options)
        assert got.experts.tolist() == [[0, 1, 2, 3]] * tokens


@every_backend
@every_scoring
@pytest.mark.parametrize("balanced", [False, True])
def test_all_logits_lowest_choose_the_first_experts(backend, scoring_func, balanced):
    """Also among groups that are kept: those excluded stay excluded."""
    logits = torch.full((5, 24), -torch.inf)
    logits[1] = torch.nan
    logits[2, 0], logits[3, 23] = torch.nan, torch.nan
    got = backend(
        logits,
        top_k=4,
        num_expert_group=4,
        topk_group=2,
        balanced=balanced,
        scoring_func=scoring_func,
    )
    expected = torch.tensor([0, 1, 6, 7] if balanced else [0, 1, 2, 3], dtype=torch.int32)
    torch.testing.assert_close(got.experts, expected.expand(5, -1))


@every_backend
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("low", [-torch.inf, torch.nan])
def test_excluded_groups_stay_excluded(backend, balanced, low):
    """Kept groups run out of finite keys, while an excluded one has plenty below the kept best."""
    logits = torch.full((3, 24), low)
    logits[:, 5], logits[:, 16], logits[:, 18:] = 3.0, 2.0, 1.0  # groups 0 and 2 before group 3
    options = {"num_expert_group": 4, "topk_group": 2, "balanced": balanced}
    got = backend(logits, top_k=6, **options)
    expected = [5, 0, 1, 16, 12, 13] if balanced else [5, 16, 0, 1, 2, 3]
    assert got.experts.tolist() == [expected] * 3


@every_backend
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("low", [-torch.inf, torch.nan])
def test_excluded_groups_stay_excluded_at_minus_infinity(backend, balanced, low):
    """Every key left is -inf, in the kept groups as in those excluded, which have lower indices."""
    logits = torch.full((3, 24), low)
    logits[:, 14], logits[:, 20] = 2.0, 1.0  # groups 2 and 3
    options = {"num_expert_group": 4, "topk_group": 2, "balanced": balanced}
    got = backend(logits, top_k=4, **options)
    expected = [14, 12, 20, 18] if balanced else [14, 20, 12, 13]
    assert got.experts.tolist() == [expected] * 3


@every_backend
@pytest.mark.parametrize("balanced", [False, True])
def test_a_nan_is_never_preferred(backend, balanced):
    logits = distinct(50, 32)
    logits[:, ::3] = torch.nan
    options = {"top_k": 8, "num_expert_group": 4, "balanced": balanced}
    got = backend(logits, **options)
    assert (got.experts % 3 != 0).any(-1).all()
    assert not logits.gather(1, got.experts.long()).isnan().any()
    assert not got.weights.isnan().any()


@every_backend
@pytest.mark.parametrize("renormalize", [False, True])
def test_infinite_maxima_share_the_mass_of_the_softmax(backend, renormalize):
    inf = torch.inf
    logits = torch.tensor([[1.0, inf, 2, inf], [-inf, 3, -inf, -inf], [-inf] * 4, [torch.nan] * 4])
    got = backend(logits, top_k=4, renormalize=renormalize)
    assert got.experts.tolist() == [[1, 3, 2, 0], [1, 0, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert got.weights.tolist() == [[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.25] * 4, [0.25] * 4]


@every_backend
def test_the_largest_float_is_not_infinity(backend):
    inf, most = torch.inf, torch.finfo(torch.float32).max
    got = backend(torch.tensor([[-inf, -most], [most, inf]]), top_k=2)
    assert got.experts.tolist() == [[1, 0], [1, 0]]
    assert got.weights.tolist() == [[1, 0], [1, 0]]


@every_backend
def test_minus_zero_equals_zero(backend):
    logits = torch.tensor([[-0.0, 0.0, -0.0, 0.0, -1.0, 0.0], [0.0, -0.0, 0.0, -0.0, 1.0, -0.0]])
    for options in ({}, {"scoring_func": "identity", "e_score_correction_bias": -torch.zeros(6)}):
        assert backend(logits, top_k=4, **options).experts.tolist() == [[0, 1, 2, 3], [4, 0, 1, 2]]
    grouped = backend(logits[:, :4], top_k=1, num_expert_group=2, topk_group=1)
    assert grouped.experts.tolist() == [[0], [0]]


@every_backend
@every_scoring
def test_taking_whole_groups_takes_everything(backend, scoring_func):
    logits = distinct(40, 24)
    options = {"num_expert_group": 4, "balanced": True, "scoring_func": scoring_func}
    whole = backend(logits, top_k=24, **options)
    expected = stable_sort(logits.view(-1, 6), 6).view(40, 4, 6)
    expected = expected + 6 * torch.arange(4, dtype=torch.int32)[:, None]
    torch.testing.assert_close(whole.experts, expected.view(40, 24))
    if scoring_func == "softmax":
        torch.testing.assert_close(whole.weights.sum(-1), torch.ones(40))


@every_backend
@every_moge
def test_permuting_groups_permutes_the_routing(backend, setting):
    groups = setting.options["num_expert_group"]
    size, taken = setting.experts // groups, setting.options["top_k"] // groups
    logits, options = inputs(setting, 60)
    order = torch.from_numpy(rng(3).permutation(groups))
    permuted = options | {
        "expert_scale": options["expert_scale"].view(groups, size)[order].flatten()
    }
    before = backend(logits, **options)
    after = backend(logits.view(-1, groups, size)[:, order].flatten(1), **permuted)
    experts = before.experts.view(-1, groups, taken) % size
    weights = before.weights.view(-1, groups, taken)
    assert torch.equal(after.experts.view(-1, groups, taken) % size, experts[:, order])
    assert_rounded_alike(after.weights.view(-1, groups, taken), weights[:, order])


@every_backend
@pytest.mark.parametrize(
    "setting",
    [moge(60, 5, 3), limited(64, 8, 4, 8), limited(64, 8, 4, 8, balanced=True), SETTINGS["qwen3"]],
    ids=["moge", "limited", "limited-balanced", "plain"],
)
def test_permuting_experts_within_their_groups_renames_them(backend, setting):
    groups = setting.options.get("num_expert_group", 1)
    size = setting.experts // groups
    logits = distinct(60, setting.experts)
    order = np.tile(np.arange(size), (groups, 1))
    order = rng(4).permuted(order, axis=1) + size * np.arange(groups)[:, None]
    order = torch.from_numpy(order.ravel())
    before, after = (backend(x, **setting.options) for x in (logits, logits[:, order]))
    assert torch.equal(order[after.experts.long()].int(), before.experts)
    assert_rounded_alike(after.weights, before.weights)


@every_backend
@pytest.mark.parametrize("constant", [1.0, -32.0, 1024.0])
@pytest.mark.parametrize("name", ["pangu-pro", "moge-60", "deepseek-v2", "qwen3"])
def test_softmax_does_not_see_a_constant(backend, name, constant):
    """Eighths stay exact under these constants, and so do the differences that softmax takes."""
    setting = SETTINGS[name]
    logits = distinct(60, setting.experts)
    options = inputs(setting, 1)[1]
    here, there = (backend(x, **options) for x in (logits, logits + constant))
    assert torch.equal(here.experts, there.experts)
    assert_rounded_alike(here.weights, there.weights)


@every_backend
@every_moge
@every_dtype
def test_moge_loads_every_group_alike(backend, setting, dtype):
    """The imbalance score, (most - fewest experts run by a group) / tokens, is zero on any data."""
    groups = setting.options["num_expert_group"]
    skew = 4 * torch.from_numpy(rng(5).standard_normal(setting.experts, dtype=np.float32))
    for tokens in (1, 3, 64):
        logits, options = inputs(setting, tokens, dtype)
        experts = backend((logits + skew).to(dtype), **options).experts
        load = experts.long().flatten().bincount(minlength=setting.experts)
        assert load.sum() == tokens * options["top_k"]
        by_group = load.view(groups, -1).sum(-1)
        assert (by_group == tokens * options["top_k"] // groups).all()


@every_backend
@pytest.mark.parametrize("balanced", [False, True])
def test_no_more_groups_than_kept(backend, balanced):
    logits, options = inputs(limited(64, 8, 3, 6, balanced=balanced), 200)
    groups = backend(logits, **options).experts // 8
    used = torch.nn.functional.one_hot(groups.long(), 8).sum(1)
    assert ((used > 0).sum(-1) <= 3).all()
    if balanced:
        assert (used.unique().tolist()) == [0, 2]


@every_backend
@pytest.mark.parametrize("name", ["moge-60", "qwen3"])
def test_renormalised_weights_are_a_softmax_over_the_selected(backend, name):
    setting = SETTINGS[name]
    logits, options = inputs(setting, 100)
    options = options | {"renormalize": True, "expert_scale": None}
    got = backend(logits, **options)
    expected = logits.double().gather(1, got.experts.long()).softmax(-1).float()
    assert_rounded_alike(got.weights, expected)
    torch.testing.assert_close(got.weights.sum(-1), torch.ones(100))


@every_backend
@every_scoring
def test_the_bias_selects_and_does_not_weigh(backend, scoring_func):
    """A bias that lifts some experts above all others leaves their weights what they were."""
    logits, _ = inputs(Setting(32, {}), 50)
    bias = torch.zeros(32)
    bias[[3, 10, 20]] = 1e4
    got = backend(logits, top_k=3, scoring_func=scoring_func, e_score_correction_bias=bias)
    assert (got.experts.sort(-1).values == torch.tensor([3, 10, 20])).all()
    everyone = backend(logits, top_k=32, scoring_func=scoring_func)
    by_expert = torch.empty(50, 32).scatter_(1, everyone.experts.long(), everyone.weights)
    torch.testing.assert_close(got.weights, by_expert.gather(1, got.experts.long()), rtol=0, atol=0)


@every_backend
@pytest.mark.parametrize("renormalize", [False, True])
def test_factor_and_scale_multiply_after_renormalising(backend, renormalize):
    logits, options = inputs(Setting(32, {"top_k": 4, "renormalize": renormalize}), 50)
    plain = backend(logits, **options)
    factor, scale = 4.0, torch.tensor([0.5, 2.0] * 16)  # powers of two: exact
    got = backend(logits, routed_scaling_factor=factor, expert_scale=scale, **options)
    assert torch.equal(got.experts, plain.experts)
    assert torch.equal(got.weights, plain.weights * factor * scale[plain.experts.long()])


@every_backend
def test_the_two_best_decide_where_the_best_would_not(backend):
    """Group 0 has the largest key, group 1 the largest pair; their sums are exact."""
    logits = torch.tensor([[4.0, 0, 0, 3, 3, 0, 2, 2, 2]])
    options = {"top_k": 2, "num_expert_group": 3, "topk_group": 1, "scoring_func": "identity"}
    assert backend(logits, group_score="max", **options).experts.tolist() == [[0, 1]]
    assert backend(logits, group_score="top2_sum", **options).experts.tolist() == [[3, 4]]


@every_backend
def test_inputs_are_left_alone(backend):
    logits, options = inputs(SETTINGS["deepseek-v3"], 20)
    bias = options["e_score_correction_bias"]
    before = logits.clone(), bias.clone()
    backend(logits, **options)
    assert torch.equal(logits, before[0])
    assert torch.equal(bias, before[1])


def assert_rounded_alike(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Sums taken in another order: a few units in the last place."""
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
