"""Gradients of the logits and of expert_scale, and the lack of any on the inference path."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triselect.kernels.grouped_topk import eager, reference

import triselect

from ..backends import opcheck
from .cases import SETTINGS, every_backend, every_scoring, every_trained_backend, inputs
from .compare import DEFAULTS, complete
from .gradients import differences

STRUCTURES = {
    "moge": {"top_k": 3, "num_expert_group": 3, "balanced": True},
    "moge-two-each": {"top_k": 6, "num_expert_group": 3, "balanced": True},
    "limited": {"top_k": 3, "num_expert_group": 4, "topk_group": 2, "group_score": "top2_sum"},
    "plain": {"top_k": 4},
    "everyone": {"top_k": 12},
}
every_structure = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
every_sum = pytest.mark.parametrize("renormalize", [False, True], ids=["raw", "renormalised"])


def problem(structure, scoring_func, renormalize, tokens=3, experts=12):
    """Logits a quarter apart, so that no step changes a selection, and a gradient to send back."""
    rng = np.random.default_rng(0)
    ladder = np.tile(np.arange(experts) / 4 - 0.9, (tokens, 1))
    logits = torch.from_numpy(rng.permuted(ladder, axis=1)).float()
    options = structure | {
        "scoring_func": scoring_func,
        "renormalize": renormalize,
        "routed_scaling_factor": 2.5,
        "expert_scale": torch.from_numpy(1 + 0.3 * rng.standard_normal(experts)).float(),
        "e_score_correction_bias": torch.from_numpy(0.01 * rng.standard_normal(experts)).float(),
    }
    upstream = torch.from_numpy(rng.standard_normal((tokens, options["top_k"]))).float()
    return logits, options, upstream


@every_trained_backend
@every_structure
@every_scoring
@every_sum
def test_gradients_are_the_slopes_of_the_reference(backend, structure, scoring_func, renormalize):
    logits, options, upstream = problem(structure, scoring_func, renormalize)
    scale = options["expert_scale"].requires_grad_()
    logits.requires_grad_()
    backend(logits, **options).weights.backward(upstream)

    o = complete(options)
    x = logits.detach().double().numpy()
    g = upstream.double().numpy()
    chosen = reference.grouped_topk(x, **o)[1]

    def loss(logits=x, scale=o["expert_scale"]):
        weights, experts = reference.grouped_topk(logits, **(o | {"expert_scale": scale}))
        np.testing.assert_array_equal(experts, chosen)
        return (weights * g).sum()

    by_logits = differences(loss, x)
    by_scale = differences(lambda scale: loss(scale=scale), o["expert_scale"].astype(np.float64))
    np.testing.assert_allclose(logits.grad, by_logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scale.grad, by_scale, rtol=1e-5, atol=1e-6)


@every_trained_backend
@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_those_of_autograd_through_eager(backend, name):
    logits, options = inputs(SETTINGS[name], 33)
    if (scale := options.get("expert_scale")) is not None:
        scale.requires_grad_()
    logits.requires_grad_()
    leaves = [t for t in (logits, scale) if t is not None]
    weights = backend(logits, **options).weights
    upstream = torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    got = torch.autograd.grad(weights, leaves, upstream)
    expected = torch.autograd.grad(through_eager(logits, options), leaves, upstream)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def through_eager(logits, options):
    """The eager backend with no operator around it: PyTorch's own autograd differentiates it."""
    tensors = {k: v for k, v in options.items() if isinstance(v, torch.Tensor)}
    return eager.grouped_topk(logits, **(complete(options) | tensors))[0]


@every_trained_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_scoring
@every_sum
def test_gradients_in_low_precision(backend, dtype, scoring_func, renormalize):
    """Computed in float32 and rounded once, to the dtype of the logits."""
    logits, options, upstream = problem(STRUCTURES["moge"], scoring_func, renormalize)
    low = logits.to(dtype).requires_grad_()
    scale = options["expert_scale"].to(dtype).requires_grad_()
    backend(low, **(options | {"expert_scale": scale})).weights.backward(upstream)
    exact = low.detach().float().requires_grad_()
    exact_scale = scale.detach().float().requires_grad_()
    backend(exact, **(options | {"expert_scale": exact_scale})).weights.backward(upstream)
    assert low.grad.dtype == scale.grad.dtype == dtype
    torch.testing.assert_close(low.grad, exact.grad.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(scale.grad, exact_scale.grad.to(dtype), rtol=0, atol=0)


@every_trained_backend
@every_scoring
@every_sum
@pytest.mark.parametrize("name", ["moge", "everyone"])
def test_masked_experts_have_no_gradient(backend, name, scoring_func, renormalize):
    """A logit of -inf is a mask, and NaN counts as one: its gradient is zero and spreads no NaN."""
    if scoring_func == "identity":
        pytest.skip("an identity score of -inf is no finite weight")
    logits, options, upstream = problem(STRUCTURES[name], scoring_func, renormalize)
    logits[:, ::2] = -torch.inf
    logits[:, 4] = torch.nan
    logits.requires_grad_()
    options["e_score_correction_bias"] = None
    backend(logits, **options).weights.backward(upstream)
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, ::2] == 0).all()
    assert (logits.grad[:, 1::2] != 0).any()


@every_trained_backend
@pytest.mark.parametrize("wanted", ["logits", "expert_scale"])
def test_only_what_is_asked_for(backend, wanted):
    logits, options, upstream = problem(STRUCTURES["moge"], "softmax", True)
    leaf = logits if wanted == "logits" else options["expert_scale"]
    leaf.requires_grad_()
    routing = backend(logits, **options)
    routing.weights.backward(upstream)
    assert leaf.grad is not None
    assert not routing.experts.requires_grad


@every_trained_backend
def test_no_tokens(backend):
    logits, options, _ = problem(STRUCTURES["moge"], "softmax", False, tokens=0)
    scale = options["expert_scale"].requires_grad_()
    logits.requires_grad_()
    backend(logits, **options).weights.sum().backward()
    assert logits.grad.shape == (0, 12)
    assert (scale.grad == 0).all()


class Calls(TorchDispatchMode):
    """Names of the operators of this library that run inside."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "triselect":
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_inference_goes_around_autograd(requires_grad):
    """The overload without autograd runs, whether nothing requires grad or no_grad says so."""
    logits, options, _ = problem(STRUCTURES["moge"], "softmax", False)
    logits.requires_grad_(requires_grad)
    with Calls() as calls, torch.set_grad_enabled(not requires_grad):
        routing = triselect.grouped_topk(logits, **options)
    assert calls.names == ["triselect.grouped_topk.default"]
    assert routing.weights.grad_fn is None
    assert not routing.weights.requires_grad


@pytest.mark.parametrize("wanted", ["logits", "expert_scale"])
def test_training_goes_through_autograd(wanted):
    """Whichever of the two requires grad: the C++ kernel alone would return constants."""
    logits, options, _ = problem(STRUCTURES["moge"], "softmax", False)
    leaf = logits if wanted == "logits" else options["expert_scale"]
    leaf.requires_grad_()
    with Calls() as calls:
        assert triselect.grouped_topk(logits, **options).weights.requires_grad
    assert calls.names == ["triselect.grouped_topk.backend"]


@every_backend
def test_nothing_is_recorded_where_nothing_requires_grad(backend):
    logits, options, _ = problem(STRUCTURES["moge"], "softmax", False)
    assert backend(logits, **options).weights.grad_fn is None


@every_backend
@pytest.mark.parametrize("name", ["pangu-pro", "deepseek-v3"])
def test_opcheck_inference(backend, name):
    opcheck("grouped_topk", arguments(name), backend)


@every_trained_backend
@pytest.mark.parametrize("name", ["pangu-pro", "deepseek-v3"])
def test_opcheck_training(backend, name):
    args = arguments(name)
    opcheck("grouped_topk", args, backend, leaves=(0,) if args[-1] is None else (0, -1))


def arguments(name):
    """The arguments of the operator, all of them, in their order."""
    logits, options = inputs(SETTINGS[name], 6)
    top_k = options.pop("top_k")
    options["topk_group"] = options.get("topk_group", options.get("num_expert_group", 1))
    return (logits, top_k, *(DEFAULTS | options).values())
