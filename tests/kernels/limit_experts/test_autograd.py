"""Gradients of the weights, given what was chosen; votes and what is kept have none."""

import pytest
import torch

import triselect

from ..backends import opcheck
from ..compiling import assert_compiles_once
from ..grouped_topk.cases import SETTINGS, every_setting, inputs
from ..grouped_topk.gradients import Upstream, assert_gradients
from ..grouped_topk.test_autograd import Calls, arguments
from .cases import every_backend, every_scope, every_trained_backend, some_budgets


@every_trained_backend
@every_setting
@every_scope
def test_gradients_are_those_of_the_experts_chosen(backend, setting, per_group):
    logits, options = inputs(setting, 33)
    leaves = [logits.clone().requires_grad_()]
    if "expert_scale" in options:
        options["expert_scale"].requires_grad_()
        leaves.append(options["expert_scale"])
    budget = some_budgets(setting, per_group)[1]
    got = backend(leaves[0], budget=budget, per_group=per_group, **options)
    assert not got.experts.requires_grad
    assert not got.kept.requires_grad
    upstream = torch.linspace(-1, 2, got.weights.numel()).view_as(got.weights)
    found = torch.autograd.grad(got.weights, leaves, upstream)
    call = Upstream(
        upstream,
        logits,
        got.experts,
        options.get("scoring_func", "softmax"),
        options.get("renormalize", False),
        options.get("routed_scaling_factor", 1.0),
        leaves[1].detach() if len(leaves) > 1 else None,
    )
    assert_gradients((*found, torch.empty(0))[:2], call)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_inference_goes_around_autograd(requires_grad):
    logits, options = inputs(SETTINGS["pangu-pro"], 3)
    logits.requires_grad_(requires_grad)
    with Calls() as calls, torch.set_grad_enabled(not requires_grad):
        got = triselect.limit_experts(logits, budget=3, **options)
    assert calls.names == ["triselect.limit_experts.default"]
    assert got.weights.grad_fn is None


@pytest.mark.parametrize("wanted", ["logits", "expert_scale"])
def test_training_goes_through_autograd(wanted):
    logits, options = inputs(SETTINGS["pangu-pro"], 3)
    (logits if wanted == "logits" else options["expert_scale"]).requires_grad_()
    with Calls() as calls:
        assert triselect.limit_experts(logits, budget=3, **options).weights.requires_grad
    assert calls.names == ["triselect.limit_experts.backend"]


@every_backend
@every_scope
def test_opcheck_inference(backend, per_group):
    budget = some_budgets(SETTINGS["deepseek-v3"], per_group)[1]
    opcheck("limit_experts", (*arguments("deepseek-v3"), budget, per_group), backend)


@every_trained_backend
def test_opcheck_training(backend):
    opcheck("limit_experts", (*arguments("pangu-pro"), 5, True), backend, leaves=(0, 10))


def model(backend):
    """A function of logits, with something to fuse before and after."""
    options = {k: backend.put(v) for k, v in inputs(SETTINGS["pangu-pro"], 1)[1].items()}

    def routed(logits):
        weights, experts, kept = triselect.limit_experts(
            logits * 2, budget=5, backend=backend.name, **options
        )
        return weights * 1, experts, ~kept

    return routed


@every_backend
def test_one_compilation_for_every_number_of_tokens(backend, compiler):
    def batch(tokens):
        return (backend.put(inputs(SETTINGS["pangu-pro"], tokens)[0]),)

    assert_compiles_once(model(backend), batch, compiler)


@every_trained_backend
def test_gradients_of_a_compiled_function(backend, compiler):
    def batch(tokens):
        return (backend.put(inputs(SETTINGS["pangu-pro"], tokens)[0]).requires_grad_(),)

    def trained(function):
        def run(logits):
            weights = function(logits)[0]
            upstream = torch.linspace(-1, 1, weights.numel(), device=weights.device)
            return torch.autograd.grad(weights, logits, upstream.view_as(weights))

        return run

    assert_compiles_once(model(backend), batch, compiler, few=(), wrap=trained)


def test_meta_tensors_have_the_shapes_of_real_ones():
    logits = torch.zeros(3, 12)
    real, meta = (triselect.limit_experts(x, 2, 4) for x in (logits, logits.to("meta")))
    assert [(t.shape, t.dtype) for t in meta] == [(t.shape, t.dtype) for t in real]
