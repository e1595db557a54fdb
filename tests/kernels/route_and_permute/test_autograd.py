"""Gradients of the weights are those of grouped_topk; a permutation has none."""

import pytest
import torch

import triselect

from ..backends import assert_bits, opcheck
from ..compiling import assert_compiles_once
from ..grouped_topk.cases import SETTINGS, every_setting, inputs
from ..grouped_topk.test_autograd import Calls, arguments
from .cases import apart, every_backend, every_trained_backend


def gradients(backend, logits, options):
    options = dict(options)
    leaves = [logits.clone().requires_grad_()]
    if options.get("expert_scale") is not None:
        options["expert_scale"] = options["expert_scale"].clone().requires_grad_()
        leaves.append(options["expert_scale"])
    weights, *indices = backend(leaves[0], **options)
    assert not any(t.requires_grad for t in indices)
    upstream = torch.linspace(-1, 1, weights.numel()).view_as(weights)
    return torch.autograd.grad(weights, leaves, upstream)


@every_trained_backend
@every_setting
def test_gradients_are_those_of_grouped_topk(backend, setting):
    logits, options = inputs(setting, 33)
    got = gradients(backend, logits, options)
    assert_bits(got, gradients(backend._replace(function=apart), logits, options))
    assert (got[0] != 0).any()


@every_trained_backend
def test_no_tokens(backend):
    logits, options = inputs(SETTINGS["pangu-pro"], 0)
    d_logits, d_scale = gradients(backend, logits, options)
    assert d_logits.shape == (0, 64)
    assert (d_scale == 0).all()


@pytest.mark.parametrize("requires_grad", [False, True])
def test_inference_goes_around_autograd(requires_grad):
    logits, options = inputs(SETTINGS["pangu-pro"], 3)
    logits.requires_grad_(requires_grad)
    with Calls() as calls, torch.set_grad_enabled(not requires_grad):
        routed = triselect.route_and_permute(logits, **options)
    assert calls.names == ["triselect.route_and_permute.default"]
    assert routed.weights.grad_fn is None


@pytest.mark.parametrize("wanted", ["logits", "expert_scale"])
def test_training_goes_through_autograd(wanted):
    logits, options = inputs(SETTINGS["pangu-pro"], 3)
    leaf = logits if wanted == "logits" else options["expert_scale"]
    leaf.requires_grad_()
    with Calls() as calls:
        assert triselect.route_and_permute(logits, **options).weights.requires_grad
    assert calls.names == ["triselect.route_and_permute.backend"]


@every_backend
def test_opcheck_inference(backend):
    opcheck("route_and_permute", arguments("deepseek-v3"), backend)


@every_trained_backend
def test_opcheck_training(backend):
    opcheck("route_and_permute", arguments("pangu-pro"), backend, leaves=(0, -1))


def model(backend):
    """A function of logits, with something to fuse before and after."""
    options = {k: backend.put(v) for k, v in inputs(SETTINGS["pangu-pro"], 1)[1].items()}

    def routed(logits):
        weights, experts, source, *rest = triselect.route_and_permute(
            logits * 2, backend=backend.name, **options
        )
        return weights * 1, experts, source + 1, *rest

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
    real, meta = (triselect.route_and_permute(x, 2) for x in (logits, logits.to("meta")))
    for mine, theirs in zip(meta, real, strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
