"""Formulas written by hand, and the hash router of transformers' DeepSeek-V4."""

import pytest
import torch
from torch.nn.functional import softplus

from .cases import Call, every_backend


@every_backend
@pytest.mark.parametrize("tokens", [1, 16, 200])
def test_the_weights_of_deepseek_v4(backend, tokens):
    """sqrt(softplus) of the chosen experts' logits, over their sum, times a factor."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(500, (tokens,), generator=generator)
    table = torch.rand(500, 96, generator=generator).argsort(-1)[:, :6]
    logits = torch.randn(tokens, 96, generator=generator)
    weights, experts = backend(
        *Call(ids, table, 96, logits=logits, renormalize=True, routed_scaling_factor=1.5, top_k=6)
    )
    chosen = table[ids]
    assert torch.equal(experts.long(), chosen)
    p = softplus(logits.double()).sqrt().gather(1, chosen)
    torch.testing.assert_close(
        weights.double(), 1.5 * p / p.sum(-1, keepdim=True), rtol=1e-6, atol=0
    )


@every_backend
def test_the_router_of_transformers(backend):
    pytest.importorskip("transformers", reason="transformers is not installed")
    router = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config

    config = DeepseekV4Config(
        hidden_size=32, vocab_size=300, n_routed_experts=48, num_experts_per_tok=6
    )
    layer = router.DeepseekV4HashRouter(config)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(layer.weight, std=0.3, generator=generator)
    experts = layer.num_experts
    table = torch.rand(300, experts, generator=generator).argsort(-1)[:, : layer.top_k]
    layer.tid2eid.copy_(table)
    ids = torch.randint(300, (64,), generator=generator)
    with torch.no_grad():
        logits, weights, chosen = layer(torch.randn(64, 32, generator=generator), ids)
    got = backend(
        *Call(
            ids,
            table,
            experts,
            logits=logits,
            scoring_func="sqrt_softplus",
            renormalize=True,
            routed_scaling_factor=layer.routed_scaling_factor,
            top_k=layer.top_k,
        )
    )
    assert torch.equal(got.experts.long(), chosen)
    torch.testing.assert_close(got.weights, weights, rtol=1e-6, atol=0)


@every_backend
def test_the_random_experts_of_pangu_sigma(backend):
    """The domain chooses a group of experts, a table the expert in it; every weight is 1."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(160, (1000,), generator=generator)
    ids = torch.randint(1000, (50,), generator=generator)
    domains = torch.randint(4, (50,), generator=generator)
    weights, experts = backend(*Call(ids, table, 640, domains, num_expert_group=4))
    expected = [160 * int(d) + int(table[v]) for v, d in zip(ids, domains, strict=True)]
    assert experts.flatten().tolist() == expected
    assert (weights == 1).all()


@every_backend
def test_padding_takes_no_part_of_the_weights(backend):
    """A token of padding has no expert and no weight; its neighbours have theirs in full."""
    table = torch.tensor([[0, 2], [1, 3]])
    weights, experts = backend(*Call(torch.tensor([1, -1, 0]), table, 4, renormalize=True, top_k=2))
    assert experts.tolist() == [[1, 3], [-1, -1], [0, 2]]
    assert weights.tolist() == [[0.5, 0.5], [0, 0], [0.5, 0.5]]
