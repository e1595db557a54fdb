"""Routers and the logits they are fed."""

import pytest
import torch

from triselect.report import routers
from triselect.report.routers import DEEPSEEK_V3, OTHERS, PANGU, Router, tokens_of


@pytest.mark.parametrize("router", [PANGU, DEEPSEEK_V3, *OTHERS], ids=lambda r: r.name)
def test_routers_route(router: Router) -> None:
    routing = router(tokens_of(router, 3))
    assert routing.experts.shape == (3, router.top_k)
    assert routing.experts.max() < router.experts


def test_tokens_are_those_of_the_sample() -> None:
    pool = routers.sample().logits.flatten(0, 2)
    tokens = tokens_of(PANGU, len(pool))
    assert torch.equal(tokens.sum(1).sort().values, pool.sum(1).sort().values)
    assert not torch.equal(tokens, pool), "not shuffled"
    assert torch.equal(tokens_of(PANGU, len(pool) + 5)[-5:], tokens[:5])


def test_more_experts_are_layers_side_by_side() -> None:
    layers = routers.sample().logits.flatten(1, 2)
    wide = tokens_of(DEEPSEEK_V3, 7)
    position = (layers[0] == wide[0, :64]).all(1).nonzero().item()
    assert torch.equal(wide[0], layers[:4, position].flatten())


def test_noise_is_named_where_the_sample_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from triselect import models

    def missing() -> None:
        raise FileNotFoundError("no such file")

    monkeypatch.setattr(models, "router_logits", missing)
    routers.sample.cache_clear()
    try:
        sample = routers.sample()
    finally:
        routers.sample.cache_clear()
    assert not sample.real
    assert "random" in sample.source
    assert "no such file" in sample.source
