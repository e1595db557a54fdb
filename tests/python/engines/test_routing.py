"""Routing functions as vLLM and SGLang call them; neither engine is needed."""

import doctest
import inspect
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from triselect import grouped_topk
from triselect.engines import sglang_routing, vllm_routing

HOOKS = {"vllm": vllm_routing, "sglang": sglang_routing}


@pytest.fixture(params=HOOKS)
def hook(request: pytest.FixtureRequest) -> Callable[..., Callable[..., tuple[Tensor, Tensor]]]:
    return HOOKS[request.param]


def logits(tokens: int = 20, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(tokens, 64, generator=torch.Generator().manual_seed(0)).to(dtype)


def called(route: Any, gating_output: Tensor, topk: int, renormalize: bool) -> Any:
    """As both engines do: by name."""
    hidden = torch.empty(len(gating_output), 16, dtype=torch.bfloat16)
    return route(
        hidden_states=hidden, gating_output=gating_output, topk=topk, renormalize=renormalize
    )


def test_the_signature_is_the_engines(hook: Any) -> None:
    parameters = inspect.signature(hook(num_expert_group=8)).parameters
    assert list(parameters) == ["hidden_states", "gating_output", "topk", "renormalize"]
    assert all(p.default is inspect.Parameter.empty for p in parameters.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 20])
def test_moge(hook: Any, dtype: torch.dtype, tokens: int) -> None:
    """Softmax over all experts, the best of each group, weights as they are."""
    x = logits(tokens, dtype)
    weights, experts = called(hook(num_expert_group=8, balanced=True), x, 8, False)
    assert weights.dtype is torch.float32
    assert experts.dtype is torch.int32
    assert weights.is_contiguous()
    assert experts.is_contiguous()
    expected = x.float().view(-1, 8, 8).argmax(-1) + 8 * torch.arange(8)
    assert torch.equal(experts.long(), expected)
    scores = x.double().softmax(-1).gather(1, expected)
    torch.testing.assert_close(weights.double(), scores, rtol=1e-6, atol=0)


def test_any_option(hook: Any) -> None:
    bias = torch.rand(64, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {
        "num_expert_group": 8,
        "topk_group": 4,
        "scoring_func": "sigmoid",
        "group_score": "top2_sum",
        "e_score_correction_bias": bias,
        "routed_scaling_factor": 2.5,
        "expert_scale": bias + 1,
        "backend": "eager",
    }
    for renormalize in (False, True):
        found = called(hook(**options), logits(), 6, renormalize)
        expected = grouped_topk(logits(), 6, renormalize=renormalize, **options)
        assert type(found) is tuple
        assert all(map(torch.equal, found, expected))


def test_the_engine_renormalises_unless_told_here(hook: Any) -> None:
    moge = {"num_expert_group": 8, "balanced": True}
    for asked, options, is_one in [
        (True, {}, True),
        (False, {}, False),
        (True, {"renormalize": False}, False),
        (False, {"renormalize": True}, True),
    ]:
        weights, _ = called(hook(**moge, **options), logits(), 8, asked)
        assert torch.allclose(weights.sum(1), torch.ones(20)) is is_one


def test_weights_that_change_are_seen(hook: Any) -> None:
    """Parameters are loaded after the layer is made."""
    scale = torch.nn.Parameter(torch.ones(64), requires_grad=False)
    route = hook(num_expert_group=8, balanced=True, expert_scale=scale)
    before, _ = called(route, logits(), 8, False)
    scale.data.fill_(2.0)
    after, _ = called(route, logits(), 8, False)
    assert torch.equal(after, 2 * before)


def test_outputs_are_the_engine_s_own(hook: Any) -> None:
    """SGLang writes into the experts of padded tokens."""
    route = hook()
    x = logits()
    first, second = called(route, x, 4, True), called(route, x, 4, True)
    first[1].fill_(-1)
    assert (second[1] >= 0).all()


def test_compiles(hook: Any) -> None:
    route = torch.compile(hook(num_expert_group=8, balanced=True), fullgraph=True, backend="eager")
    found = called(route, logits(), 8, True)
    expected = grouped_topk(logits(), 8, num_expert_group=8, balanced=True, renormalize=True)
    assert all(map(torch.equal, found, expected))


def test_refuses(hook: Any) -> None:
    with pytest.raises(TypeError, match=r"those of grouped_topk, .*got 'n_group'"):
        hook(n_group=8)
    with pytest.raises(TypeError, match="got 'top_k'"):
        hook(top_k=8)
    with pytest.raises(ValueError, match="num_expert_group must divide"):
        called(hook(num_expert_group=7), logits(), 7, True)


def test_the_examples_run() -> None:
    results = doctest.testmod(import_module("triselect.engines.routing"))
    assert results.attempted == 10
    assert results.failed == 0


@pytest.mark.parametrize("engine", HOOKS)
def test_the_readme_s_code_runs(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a layer that only keeps what it is given."""
    layer = {"vllm": "FusedMoE", "sglang": "TopK"}[engine]
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    blocks = [x for x in re.findall(r"```py\n(.*?)```", readme, re.DOTALL) if f"from {engine}" in x]
    assert len(blocks) == 1
    found = re.search(rf"from (\S+) import {layer}", blocks[0])
    assert found is not None
    names = found[1].split(".")
    for i in range(len(names)):
        name = ".".join(names[: i + 1])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    given: dict[str, Any] = {}
    setattr(sys.modules[found[1]], layer, given.update)
    scale = torch.arange(64.0)
    exec(blocks[0], {"router_scale": scale})
    assert given["top_k"] == 8
    assert given["renormalize"] is False
    weights, experts = called(given["custom_routing_function"], logits(), 8, False)
    expected = grouped_topk(logits(), 8, num_expert_group=8, balanced=True, expert_scale=scale)
    assert torch.equal(experts, expected.experts)
    assert torch.equal(weights, expected.weights)
