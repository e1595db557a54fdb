"""The small Pangu Pro MoE."""

import doctest
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triselect.models import PANGU_PRO, PanguMoE, PanguMoEConfig
from triselect.moe.balance import expert_load, imbalance_score

TINY = PanguMoEConfig(vocab_size=50, hidden_size=32, intermediate_size=6, heads=4, head_dim=8)


@pytest.fixture
def tiny() -> Any:
    torch.manual_seed(0)
    model = PanguMoE(TINY).requires_grad_(False)
    for layer in model.layers:
        layer.moe.router_scale.uniform_(0.5, 2.0)
    return model


def tokens(batch: int = 2, length: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(TINY.vocab_size, (batch, length), generator=generator)


def moe_inputs(model: Any) -> list[Tensor]:
    """What each layer's mixture sees, ``(tokens, H)``."""
    seen: list[Tensor] = []
    hooks = [
        layer.moe.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
        for layer in model.layers
    ]
    model(tokens())
    for hook in hooks:
        hook.remove()
    return seen


def test_every_group_gets_one_expert_of_each_token(tiny: Any) -> None:
    for layer, hidden in zip(tiny.layers, moe_inputs(tiny), strict=True):
        routing = layer.moe.route(hidden)
        assert (routing.experts // 8).tolist() == [list(range(8))] * 24
        assert imbalance_score(routing.experts, 64, 8) == 0
        assert (expert_load(routing.experts, 64) > 0).sum() > 16  # not the same for all tokens


def test_the_experts_are_the_paper_s_formula(tiny: Any) -> None:
    """Equations 5 to 7, with `router_scale` and the 4 shared experts apart, token by token."""
    for layer, hidden in zip(tiny.layers, moe_inputs(tiny), strict=True):
        moe = layer.moe
        found = moe(hidden)
        w = {name: p.double() for name, p in moe.named_parameters()}
        shared_gate, shared_up = w["shared_gate_up_proj"].chunk(2)
        for x, y in zip(hidden.double(), found.double(), strict=True):
            score = (w["router"] @ x).softmax(0)
            expected = torch.zeros_like(x)
            for j in range(8):
                i = 8 * j + int(score[8 * j : 8 * j + 8].argmax())
                gate, up = w["gate_up_proj"][i].chunk(2)
                weight = score[i] * w["router_scale"][i]
                expected += weight * (w["down_proj"][i] @ (silu(gate @ x) * (up @ x)))
            for s in range(4):
                part = slice(6 * s, 6 * s + 6)
                inner = silu(shared_gate[part] @ x) * (shared_up[part] @ x)
                expected += w["shared_down_proj"][:, part] @ inner
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def test_the_published_sizes() -> None:
    """Of the paper's table 1: parameters in all, and those that a token uses."""
    with torch.device("meta"):
        model = PanguMoE(PANGU_PRO)
    total = sum(p.numel() for p in model.parameters())
    experts = sum(
        p.numel()
        for name, p in model.named_parameters()
        if name.endswith(("moe.gate_up_proj", "moe.down_proj"))
    )
    assert total == pytest.approx(71.99e9, rel=1e-3)
    assert total - experts * (64 - 8) // 64 == pytest.approx(16.50e9, rel=2e-3)
    attention: Any = model.layers[0]
    assert attention.attention.q.bias.shape == (5120,)
    assert attention.attention.k.bias.shape == attention.attention.v.bias.shape == (1024,)
    assert attention.attention.out.bias.shape == (5120,)
    assert attention.moe.shared_gate_up_proj.shape == (2 * 5376, 5120)


def test_the_future_does_not_change_the_past(tiny: Any) -> None:
    before = tokens()
    after = before.clone()
    after[:, 7] = (after[:, 7] + 1) % TINY.vocab_size
    old, new = tiny(before), tiny(after)
    torch.testing.assert_close(old[:, :7], new[:, :7], rtol=0, atol=1e-5)
    assert ((old - new)[:, 7:].abs().amax(-1) > 1e-3).all()


def test_attention_is_the_formula(tiny: Any) -> None:
    """Biases, rotated pairs as complex numbers, two query heads to a key head; head by head."""
    attention = tiny.layers[0].attention.double()
    nn.init.normal_(attention.q.bias)
    x = torch.randn(7, 32, dtype=torch.float64)
    q, k, v = ((x @ p.weight.T + p.bias) for p in (attention.q, attention.k, attention.v))
    angle = torch.arange(7)[:, None] * 1e6 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turn = torch.polar(torch.ones_like(angle), angle)
    heads = []
    for head in range(4):
        mine, its = (slice(8 * h, 8 * h + 8) for h in (head, head // 2))
        a, b = (torch.complex(*y.chunk(2, 1)) * turn for y in (q[:, mine], k[:, its]))
        scores = (a @ b.conj().T).real / 8**0.5
        heads.append(
            scores.masked_fill(~torch.ones(7, 7).tril().bool(), -1e9).softmax(1) @ v[:, its]
        )
    expected = torch.cat(heads, 1) @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(attention(x[None])[0], expected, rtol=1e-5, atol=1e-5)


def test_learns() -> None:
    torch.manual_seed(0)
    model: Any = PanguMoE(TINY)
    model(tokens()).logsumexp(-1).mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias of all keys moves no softmax.
    assert [name for name in missing if not name.endswith("attention.k.bias")] == []


def test_refuses() -> None:
    with pytest.raises(ValueError, match="heads must be a multiple of 2, got 3"):
        PanguMoEConfig(heads=3)
    with pytest.raises(ValueError, match=r"tokens must be integers \(batch, length\)"):
        PanguMoE(TINY)(torch.zeros(3, dtype=torch.int64))


def test_the_example_runs() -> None:
    results = doctest.testmod(import_module("triselect.models.pangu_moe"))
    assert results.attempted == 3
    assert results.failed == 0
