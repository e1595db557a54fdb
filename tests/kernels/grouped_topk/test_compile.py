"""The public function under torch.compile: one graph, compiled once for all numbers of tokens."""

import pytest
import torch

import triselect

from ..compiling import TOKENS, no_recompilation
from .cases import SETTINGS, every_backend, every_trained_backend, inputs
from .compare import assert_same_routing

NAMES = ("pangu-pro", "deepseek-v3")

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def model(backend, name):
    """A function of logits and expert_scale, with something to fuse before and after."""
    _, options = inputs(SETTINGS[name], 1)
    options = {key: backend.put(value) for key, value in options.items()}
    scale = options.pop("expert_scale", None)

    def routed(logits, scale):
        weights, experts = triselect.grouped_topk(
            logits * 2, expert_scale=scale, backend=backend.name, **options
        )
        return triselect.Routing(weights * 1, experts)

    return routed, scale, options


def assert_routes(compiled, backend, name, scale, options, tokens):
    logits, _ = inputs(SETTINGS[name], tokens)
    got = compiled(logits.to(backend.device), scale)
    assert_same_routing(got, logits * 2, options | {"expert_scale": scale})


@every_backend
@pytest.mark.parametrize("name", NAMES)
def test_one_compilation_for_every_number_of_tokens(backend, name, compiler):
    routed, *rest = model(backend, name)
    compiled = torch.compile(routed, backend=compiler, fullgraph=True, dynamic=True)
    assert_routes(compiled, backend, name, *rest, TOKENS[0])
    with no_recompilation():
        for tokens in TOKENS:
            assert_routes(compiled, backend, name, *rest, tokens)
    for tokens in (1, 0):  # dynamo itself compiles these two apart
        assert_routes(compiled, backend, name, *rest, tokens)


@every_backend
@pytest.mark.parametrize("name", NAMES)
def test_sizes_turn_dynamic_by_themselves(backend, name, compiler):
    """With no hint, dynamo compiles for the first size, then once for all others."""
    routed, *rest = model(backend, name)
    compiled = torch.compile(routed, backend=compiler, fullgraph=True)
    for tokens in TOKENS[:2]:
        assert_routes(compiled, backend, name, *rest, tokens)
    with no_recompilation():
        for tokens in TOKENS:
            assert_routes(compiled, backend, name, *rest, tokens)


@every_trained_backend
@pytest.mark.parametrize("name", NAMES)
def test_gradients(backend, name, compiler):
    routed, scale, _ = model(backend, name)
    compiled = torch.compile(routed, backend=compiler, fullgraph=True, dynamic=True)

    def gradients(function, tokens):
        logits = inputs(SETTINGS[name], tokens)[0].to(backend.device).requires_grad_()
        leaves = [logits] if scale is None else [logits, scale.requires_grad_()]
        weights = function(logits, scale).weights
        upstream = torch.linspace(-1, 1, weights.numel(), device=weights.device)
        return torch.autograd.grad(weights, leaves, upstream.view_as(weights))

    gradients(compiled, TOKENS[0])
    with no_recompilation():
        for tokens in TOKENS:
            got, expected = (gradients(f, tokens) for f in (compiled, routed))
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@every_backend
def test_the_factor_may_be_an_argument_of_the_graph(backend):
    """Which makes it a symbolic float."""

    def routed(logits, factor):
        return triselect.grouped_topk(logits, 4, routed_scaling_factor=factor, backend=backend.name)

    compiled = torch.compile(routed, backend="aot_eager", fullgraph=True, dynamic=True)
    logits = torch.randn(5, 16, device=backend.device)
    for factor in (2.5, 0.5):
        got, expected = (f(logits, factor) for f in (compiled, routed))
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@every_backend
def test_a_bad_argument_is_named_while_tracing(backend):
    def routed(logits):
        return triselect.grouped_topk(logits, 2, num_expert_group=3, backend=backend.name)

    compiled = torch.compile(routed, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="num_expert_group must divide the number of experts"):
        compiled(torch.randn(4, 10, device=backend.device))
