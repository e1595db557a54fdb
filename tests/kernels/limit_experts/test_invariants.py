"""What must hold within any budget, with no reference in sight."""

import pytest
import torch

from ..backends import assert_bits
from ..grouped_topk.cases import SETTINGS, Setting, every_setting, inputs, limited, moge
from ..grouped_topk.cases import route as grouped_topk
from .cases import budgets, every_backend, every_scope, some_budgets


def voted(votes: list[list[int]], experts: int) -> torch.Tensor:
    """Logits in which token t has 1 at the experts ``votes[t]``, and less everywhere else."""
    logits = torch.linspace(0.5, 0, experts).repeat(len(votes), 1)
    for token, chosen in enumerate(votes):
        logits[token, chosen] = 1.0
    return logits


def votes_of(backend, logits, options):
    experts = backend._replace(function=grouped_topk)(logits, **options).experts
    return experts.flatten().bincount(minlength=logits.shape[1])


@every_backend
@every_setting
@every_scope
def test_only_kept_experts_are_chosen_and_as_many_are_kept_as_said(backend, setting, per_group):
    logits, options = inputs(setting, 50)
    groups = options.get("num_expert_group", 1)
    need = budgets(options, setting.experts, True)[0]
    for budget in some_budgets(setting, per_group)[::2]:
        _, experts, kept = backend(logits, budget=budget, per_group=per_group, **options)
        assert (kept.shape, kept.dtype) == ((setting.experts,), torch.bool)
        assert kept[experts.long()].all()
        assert (experts.sort(-1).values.diff(dim=-1) > 0).all()
        by_group = kept.view(groups, -1).sum(-1)
        if per_group:
            assert (by_group == budget).all()
        else:
            assert by_group.sum() == budget
            assert (by_group >= need).all()


@every_backend
@every_setting
@every_scope
def test_no_expert_left_out_has_more_votes_than_one_kept(backend, setting, per_group):
    """Of its group where budgets are per group; overall beyond what every group must have."""
    logits, options = inputs(setting, 50)
    groups = options.get("num_expert_group", 1)
    need = budgets(options, setting.experts, True)[0]
    votes = votes_of(backend, logits, options).view(groups, -1)
    for budget in some_budgets(setting, per_group)[1:3]:
        kept = backend(logits, budget=budget, per_group=per_group, **options).kept
        kept = kept.view(groups, -1)
        inside = [
            row[mask].sort(descending=True).values for row, mask in zip(votes, kept, strict=True)
        ]
        outside = votes.masked_fill(kept, -1)
        if per_group:
            for row, left_out in zip(inside, outside, strict=True):
                assert row[-1] >= left_out.max()
        else:  # every group's first are kept for its own sake
            assert (torch.cat([row[need:] for row in inside]) >= outside.max()).all()


@every_backend
@every_setting
@every_scope
def test_a_budget_of_everything_is_grouped_topk(backend, setting, per_group):
    logits, options = inputs(setting, 50)
    most = budgets(options, setting.experts, per_group)[1]
    weights, experts, kept = backend(logits, budget=most, per_group=per_group, **options)
    assert kept.all()
    assert_bits((weights, experts), backend._replace(function=grouped_topk)(logits, **options))


@every_backend
@every_scope
@pytest.mark.parametrize(
    "setting",
    [moge(64, 8, 1), moge(60, 5, 3), SETTINGS["qwen3"], SETTINGS["openpangu-r"]],
    ids=["moge-64", "moge-60", "plain", "plain-bias"],
)
def test_a_token_none_of_whose_choices_was_cut_keeps_them(backend, setting, per_group):
    """Where no group is left out: what was best stays best among fewer."""
    logits, options = inputs(setting, 40)
    free = backend._replace(function=grouped_topk)(logits, **options)
    for budget in some_budgets(setting, per_group):
        weights, experts, kept = backend(logits, budget=budget, per_group=per_group, **options)
        uncut = kept[free.experts.long()].all(-1)
        assert_bits(experts[uncut], free.experts[uncut])
        assert_bits(weights[uncut], free.weights[uncut])
        cut = ~uncut
        assert (experts[cut] != free.experts[cut]).any(-1).all()


@every_backend
def test_scores_are_those_over_all_experts(backend):
    """Leaving experts out makes the others no likelier: the softmax runs over all."""
    logits, options = inputs(Setting(32, {"top_k": 3}), 50)
    weights, experts, kept = backend(logits, budget=8, **options)
    assert kept.sum() == 8
    exact = logits.double().softmax(-1).gather(1, experts.long())
    torch.testing.assert_close(weights.double(), exact, rtol=1e-6, atol=0)


@every_backend
@every_scope
def test_of_equal_votes_the_lowest_index_is_kept(backend, per_group):
    """Every expert has one vote; then two of them have two."""
    logits = voted([[expert] for expert in range(12)], 12)
    kept = backend(logits, top_k=1, budget=5, per_group=per_group).kept
    assert kept.nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    logits = voted([[expert] for expert in [*range(12), 7, 10]], 12)
    kept = backend(logits, top_k=1, budget=4, per_group=per_group).kept
    assert kept.nonzero().flatten().tolist() == [0, 1, 7, 10]


@every_backend
@every_scope
def test_no_tokens_keep_the_lowest_indices(backend, per_group):
    options = {"top_k": 3, "num_expert_group": 3, "balanced": True}
    budget = 2 if per_group else 5
    got = backend(torch.empty(0, 12), budget=budget, per_group=per_group, **options)
    expected = [0, 1, 4, 5, 8, 9] if per_group else [0, 1, 2, 4, 8]
    assert got.kept.nonzero().flatten().tolist() == expected
    assert got.weights.shape == got.experts.shape == (0, 3)


@every_backend
def test_every_group_has_its_own_before_the_rest_is_shared(backend):
    """All votes go to group 0, and yet groups 1 and 2 keep the two that a token may take."""
    logits = voted([[0, 1, 2], [0, 1, 3], [1, 2, 3]], 12)
    options = {"top_k": 6, "num_expert_group": 3, "balanced": True}
    # Two of every group are chosen by each token: 0 and 1 of group 0, ... by the ladder or above.
    kept = backend(logits, budget=7, per_group=False, **options).kept
    assert kept.view(3, 4).sum(-1).tolist() == [3, 2, 2]
    free = backend(logits, top_k=3, budget=5, per_group=False).kept
    assert free.nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


@every_backend
@every_scope
@pytest.mark.parametrize("low", [-torch.inf, torch.nan])
@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid", "sqrt_softplus", "identity"])
def test_an_expert_left_out_is_never_chosen(backend, scoring_func, low, per_group):
    """Even by a token whose every kept expert has the lowest key there is."""
    votes = [[0]] * 4 + [[1]] * 3 + [[2]] * 3
    logits = voted(votes, 8)
    lost = torch.full((2, 8), low)
    lost[1, 5:] = torch.tensor([3.0, torch.inf, 2.0])  # the best experts by far, and all left out
    logits = torch.cat((logits, lost, lost[:1]))
    got = backend(logits, top_k=1, budget=3, per_group=per_group, scoring_func=scoring_func)
    assert got.kept.nonzero().flatten().tolist() == [0, 1, 2]
    assert got.experts.flatten()[-3:].tolist() == [0, 0, 0]
    assert got.kept[got.experts.long()].all()


@every_backend
@pytest.mark.parametrize("low", [-torch.inf, torch.nan])
@pytest.mark.parametrize("balanced", [False, True])
def test_an_expert_left_out_is_never_chosen_under_a_bias(backend, balanced, low):
    """The bias lifts it above all; votes, which it has part in, were cast otherwise."""
    logits = voted([[1, 5]] * 5, 8)
    logits = torch.cat((logits, torch.full((1, 8), low)))
    bias = torch.zeros(8)
    bias[[1, 5]] = 2.0
    bias[[3, 7]] = 1.0
    options = {"top_k": 2, "num_expert_group": 2, "balanced": balanced}
    options |= {"e_score_correction_bias": bias, "scoring_func": "identity"}
    got = backend(logits, budget=1, **options)
    assert got.kept.nonzero().flatten().tolist() == [1, 5]
    assert got.experts.tolist() == [[1, 5]] * 6


@every_backend
@pytest.mark.parametrize("group_score", ["max", "top2_sum"])
def test_an_expert_left_out_does_not_count_for_its_group(backend, group_score):
    """The last token's favourite is left out, and with it the reason to keep its group."""
    votes = voted([[0, 1], [0, 1], [4, 5], [4, 5]], 8)
    last = torch.tensor([[0.0, 0.0, 9.0, 9.0, 1.0, 0.5, 0.0, 0.0]])
    logits = torch.cat((votes, last))
    options = {"top_k": 2, "num_expert_group": 2, "topk_group": 1, "group_score": group_score}
    options |= {"scoring_func": "identity"}
    assert backend(logits, budget=4, **options).experts[-1].tolist() == [2, 3]
    got = backend(logits, budget=2, **options)
    assert got.kept.nonzero().flatten().tolist() == [0, 1, 4, 5]
    assert got.experts[-1].tolist() == [4, 5]


@every_backend
def test_where_one_expert_of_a_group_is_left_it_is_the_sum_of_two(backend):
    """2.5 of group 1 alone against 2 + 0.25 of group 0, of which two are left."""
    logits = torch.tensor([[3.0, 1, 0, 0, 0, 0], [3, 1, 0, 0, 0, 0], [0, 0, 0, 3, 0, 0]])
    last = torch.tensor([[2.0, 0.25, 0.0, 2.5, 2.4, 0.0]])
    options = {"top_k": 1, "num_expert_group": 2, "topk_group": 1, "group_score": "top2_sum"}
    options |= {"scoring_func": "identity"}
    logits = torch.cat((logits, logits, last))
    got = backend(logits, budget=1, **options)
    assert got.kept.nonzero().flatten().tolist() == [0, 3]
    assert got.experts[-1].tolist() == [3]
    two = backend(logits, budget=2, **options)
    assert two.experts[-1].tolist() == [3]


@every_backend
@every_scope
def test_inputs_are_left_alone(backend, per_group):
    setting = limited(64, groups=8, kept=4, top_k=8)
    logits, options = inputs(setting, 20)
    before = logits.clone()
    backend(logits, budget=some_budgets(setting, per_group)[0], per_group=per_group, **options)
    assert torch.equal(logits, before)
