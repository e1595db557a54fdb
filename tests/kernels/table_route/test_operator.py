"""The operator among PyTorch's: gradients, opcheck, one compilation for every number of tokens."""

import numpy as np
import pytest
import torch
from triselect.kernels.table_route import reference

import triselect

from ..backends import DTYPES, assert_bits, every_dtype, opcheck
from ..compiling import assert_compiles_once
from ..grouped_topk.cases import every_scoring
from ..grouped_topk.gradients import Upstream, assert_gradients, differences
from ..grouped_topk.test_autograd import Calls
from .cases import Call, every_backend, every_trained_backend, random_call

every_sum = pytest.mark.parametrize("renormalize", [False, True], ids=["raw", "renormalised"])


def gradient(backend, call):
    """The gradient of the logits, and the experts, from a fixed gradient of the weights."""
    logits = call.logits.clone().requires_grad_()
    weights, experts = backend(*call._replace(logits=logits))
    assert not experts.requires_grad
    upstream = torch.linspace(-1, 2, weights.numel()).view_as(weights)
    (found,) = torch.autograd.grad(weights, logits, upstream)
    return found, experts, upstream


def training_call(scoring_func, renormalize, **changes):
    call = random_call(
        **{"tokens": 5, "size": 6, "groups": 2, "logits": torch.float32, "padding": 0.3} | changes,
        scoring_func=scoring_func,
        renormalize=renormalize,
        routed_scaling_factor=2.5,
    )
    if scoring_func == "identity":  # a sum close to zero has no clear slope
        call.logits.abs_().add_(0.5)
    return call


@every_trained_backend
@every_scoring
@every_sum
@pytest.mark.parametrize("vocabulary", [9, None], ids=["table", "hash"])
def test_gradients_are_the_slopes_of_the_reference(backend, scoring_func, renormalize, vocabulary):
    """Padding among the tokens, and experts that come twice in a row of the table."""
    call = training_call(scoring_func, renormalize, vocabulary=vocabulary)
    if vocabulary:
        call.table[::2, 1] = call.table[::2, 0]
    found, _, upstream = gradient(backend, call)

    def loss(x):
        arguments = call.arrays()
        arguments[5] = x
        return (reference.table_route(*arguments)[0] * upstream.numpy()).sum()

    slopes = differences(loss, call.logits.double().numpy())
    np.testing.assert_allclose(found, slopes, rtol=1e-5, atol=1e-6)


@every_trained_backend
@every_scoring
@every_sum
@every_dtype
def test_gradients_within_the_budget(backend, scoring_func, renormalize, dtype):
    call = training_call(scoring_func, renormalize, tokens=67, size=40, padding=0.1, logits=dtype)
    found, experts, upstream = gradient(backend, call)
    same = Upstream(upstream, call.logits, experts, scoring_func, renormalize, 2.5, None)
    assert_gradients((found, torch.empty(0)), same)


@every_trained_backend
def test_no_tokens(backend):
    found, experts, _ = gradient(backend, training_call("softmax", True, tokens=0))
    assert found.shape == (0, 12)
    assert experts.shape == (0, 3)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_inference_goes_around_autograd(requires_grad):
    call = training_call("softmax", False)
    call.logits.requires_grad_(requires_grad)
    with Calls() as calls, torch.set_grad_enabled(not requires_grad):
        weights, _ = triselect.table_route(**call._asdict())
    assert calls.names == ["triselect.table_route.default"]
    assert weights.grad_fn is None


def test_training_goes_through_autograd():
    call = training_call("softmax", False)
    call.logits.requires_grad_()
    with Calls() as calls:
        assert triselect.table_route(**call._asdict()).weights.requires_grad
    assert calls.names == ["triselect.table_route.backend"]


@every_backend
@pytest.mark.parametrize("vocabulary", [9, None], ids=["table", "hash"])
@pytest.mark.parametrize("logits", [None, torch.bfloat16])
def test_opcheck_inference(backend, vocabulary, logits):
    opcheck("table_route", random_call(6, vocabulary, groups=2, logits=logits), backend)


@every_trained_backend
def test_opcheck_training(backend):
    opcheck("table_route", training_call("sqrt_softplus", True), backend, leaves=(5,))


def test_both_overloads_agree():
    call = random_call(logits=torch.float32)
    operator = torch.ops.triselect.table_route
    assert_bits(operator.default(*call), operator.backend(*call, "auto"))


@every_backend
@pytest.mark.parametrize("vocabulary", [40, None], ids=["table", "hash"])
def test_one_compilation_for_every_number_of_tokens(backend, vocabulary, compiler):
    def call(tokens):
        return random_call(tokens, vocabulary, groups=2, logits=torch.float32, seed=3)

    table = backend.put(call(1).table)

    def routed(ids, domains, logits):
        options = {"domains": domains, "num_expert_group": 2, "logits": logits * 2}
        return triselect.table_route(
            ids + 0, table, 24, top_k=3, seed=5, backend=backend.name, **options
        )

    def batch(tokens):
        drawn = call(tokens)
        return tuple(map(backend.put, (drawn.token_ids, drawn.domains, drawn.logits)))

    assert_compiles_once(routed, batch, compiler)


@every_trained_backend
def test_gradients_of_a_compiled_function(backend, compiler):
    table = backend.put(random_call().table)

    def routed(ids, logits):
        options = {"logits": logits * 2, "renormalize": True, "backend": backend.name}
        return triselect.table_route(ids, table, 12, **options).weights

    def batch(tokens):
        call = random_call(tokens, logits=torch.float32, seed=tokens)
        return backend.put(call.token_ids), backend.put(call.logits).requires_grad_()

    def trained(function):
        def run(ids, logits):
            weights = function(ids, logits)
            upstream = torch.linspace(-1, 1, weights.numel(), device=weights.device)
            return torch.autograd.grad(weights, logits, upstream.view_as(weights))

        return run

    assert_compiles_once(routed, batch, compiler, few=(), wrap=trained)


def test_meta_tensors_have_the_shapes_of_real_ones():
    for vocabulary in (9, None):
        for dtype in (None, *DTYPES):
            call = random_call(5, vocabulary, logits=dtype, seed=3)
            meta = Call(*(v.to("meta") if isinstance(v, torch.Tensor) else v for v in call))
            mine, real = (triselect.table_route(**c._asdict()) for c in (meta, call))
            assert [(t.shape, t.dtype) for t in mine] == [(t.shape, t.dtype) for t in real]
