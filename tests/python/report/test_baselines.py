"""What triselect is timed against computes the same."""

import pytest
import torch

from triselect.report import baselines
from triselect.report.providers import providers
from triselect.report.routers import BALANCED, DEEPSEEK_V3, LIMITED, OTHERS, PANGU, PLAIN, tokens_of

ROUTERS = (PANGU, DEEPSEEK_V3, *OTHERS, PLAIN, LIMITED, BALANCED)
every_router = pytest.mark.parametrize("router", ROUTERS, ids=lambda router: router.name)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@every_router
@every_dtype
def test_composition_routes_as_triselect(router, dtype) -> None:
    logits = tokens_of(router, 500, dtype)
    baselines.verify(router, logits, baselines.composition(router)(logits))


@every_router
@every_dtype
def test_selection_alone_selects_as_triselect(router, dtype) -> None:
    select = baselines.selection_alone(router)
    if select is None:
        assert router.bias or router.kept < router.groups
        return
    logits = tokens_of(router, 500, dtype)
    local = select(logits)
    baselines.verify_selection(router, logits, local)
    other = (local + 1) % (router.experts // router.groups)
    with pytest.raises(baselines.Disagreement):
        baselines.verify_selection(router, logits, other)


@every_router
def test_another_routing_is_refused(router) -> None:
    logits = tokens_of(router, 100)
    weights, experts = baselines.composition(router)(logits)
    with pytest.raises(baselines.Disagreement, match="tokens are routed differently"):
        baselines.verify(router, logits, (1.001 * weights, experts))
    with pytest.raises(baselines.Disagreement):
        baselines.verify(router, logits, (weights, experts.roll(1, 0)))
    with pytest.raises(baselines.Disagreement):
        baselines.verify(router, logits, (weights, experts[:, :1].expand_as(experts)))


def test_other_order_within_a_token_is_the_same_routing() -> None:
    logits = tokens_of(PLAIN, 100)
    weights, experts = baselines.composition(PLAIN)(logits)
    baselines.verify(PLAIN, logits, (weights.flip(-1), experts.flip(-1)))


def test_group_ties_are_left_out_and_no_more() -> None:
    logits = tokens_of(LIMITED, 100)
    composed = baselines.composition(LIMITED)(logits)
    wrong = composed[1].roll(1, 0)
    with pytest.raises(baselines.Disagreement, match="100 of 100"):
        baselines.verify(LIMITED, logits, (composed[0], wrong))
    logits[:40] = 0.0
    with pytest.raises(baselines.Disagreement, match="60 of 100"):
        baselines.verify(LIMITED, logits, (composed[0], wrong))


def test_tied_experts_may_be_exchanged() -> None:
    logits = torch.zeros(10, 64)
    weights, experts = baselines.composition(PLAIN)(logits)
    baselines.verify(PLAIN, logits, (weights, (experts + 1) % 64))


def test_providers_say_why_someone_is_missing() -> None:
    who = providers(DEEPSEEK_V3, tokens_of(DEEPSEEK_V3, 8), compiler="no such compiler")
    assert {"triselect", "eager", "composition"} <= set(who.calls)
    assert "no such compiler" in who.unavailable["compiled"]
    assert "top-k" in who.unavailable["selection"]
    assert not set(who.calls) & set(who.unavailable)


def test_a_wrong_compiler_is_refused() -> None:
    with pytest.raises(baselines.Disagreement):
        providers(PANGU, tokens_of(PANGU, 8), compiled=baselines.composition(BALANCED))
