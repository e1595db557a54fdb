"""The backward operator by itself, and a training step through it."""

import importlib
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor

import triselect

from ..backends import DTYPES, LAYOUTS, assert_bits, every_dtype, opcheck, over_backends
from ..compiling import assert_compiles_once
from .cases import SETTINGS, every_scoring, every_setting, every_trained_backend, inputs
from .compare import reference_routing
from .gradients import Upstream, assert_gradients

# What `triselect.ops.grouped_topk` names is the function, not the module.
ops = importlib.import_module("triselect.ops.grouped_topk")

every_sum = pytest.mark.parametrize("renormalize", [False, True], ids=["raw", "renormalised"])


def gradients(
    call: Upstream, layouts: tuple[str, ...] = (), *, backend: str
) -> tuple[Tensor, Tensor]:
    """The operator by a backend's name; `layouts` are those of its first arguments."""
    first = [LAYOUTS[layout](tensor) for layout, tensor in zip(layouts, call, strict=False)]
    return torch.ops.triselect.grouped_topk_backward.backend(*first, *call[len(first) :], backend)


every_backend = over_backends(
    lambda *args, layouts=(), backend: gradients(Upstream(*args), layouts, backend=backend),
    "grouped_topk_backward",
)


def random_call(
    scoring_func: str = "softmax",
    renormalize: bool = True,
    tokens: int = 37,
    experts: int = 24,
    top_k: int = 5,
    dtype: torch.dtype = torch.float32,
    padding: float = 0.0,
    distinct: bool = True,
    scale: bool = True,
    seed: int = 0,
) -> Upstream:
    """A gradient, logits, and experts that no router would need to have chosen."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(tokens, experts, generator=generator)
    if scoring_func == "identity":
        logits = logits.abs() + 0.5  # else a sum of weights may be close to zero
    if distinct:
        chosen = torch.rand(tokens, experts, generator=generator).argsort(-1)[:, :top_k]
    else:
        chosen = torch.randint(experts, (tokens, top_k), generator=generator)
    gone = torch.rand(tokens, top_k, generator=generator) < padding
    return Upstream(
        torch.randn(tokens, top_k, generator=generator),
        logits.to(dtype),
        chosen.masked_fill(gone, -1).int(),
        scoring_func,
        renormalize,
        2.5,
        1 + 0.3 * torch.randn(experts, generator=generator) if scale else None,
    )


@every_backend
@every_setting
@every_dtype
def test_models(backend, setting, dtype):
    logits, options = inputs(setting, 67, dtype)
    experts = torch.from_numpy(reference_routing(logits, options)[1])
    call = Upstream(
        torch.randn(experts.shape, generator=torch.Generator().manual_seed(0)),
        logits,
        experts,
        options.get("scoring_func", "softmax"),
        options.get("renormalize", False),
        options.get("routed_scaling_factor", 1.0),
        options.get("expert_scale"),
    )
    assert_gradients(backend(*call), call)


@every_backend
@every_scoring
@every_sum
@pytest.mark.parametrize("padding", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("distinct", [True, False], ids=["distinct", "duplicates"])
@pytest.mark.parametrize("scale", [True, False], ids=["scaled", "unscaled"])
def test_padding_and_duplicates(backend, scoring_func, renormalize, padding, distinct, scale):
    """Of experts that a table gives: -1 is none, and one that comes twice has both gradients."""
    call = random_call(scoring_func, renormalize, padding=padding, distinct=distinct, scale=scale)
    got = backend(*call)
    assert_gradients(got, call)
    nowhere = (call.experts < 0).all(-1)
    assert (got[0][nowhere] == 0).all()


@every_backend
@every_scoring
@pytest.mark.parametrize("tokens", [0, 1, 2, 15, 16, 17, 300])
@pytest.mark.parametrize("experts", [1, 7, 100])
def test_sizes(backend, scoring_func, tokens, experts):
    call = random_call(scoring_func, tokens=tokens, experts=experts, top_k=min(experts, 3))
    got = backend(*call)
    assert_gradients(got, call)
    if not tokens:
        assert got[1].tolist() == [0] * experts


@every_backend
@every_dtype
@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
def test_the_scale_may_have_any_dtype_and_stride(backend, scoring_func, dtype):
    call = random_call(scoring_func)
    scale = torch.stack((call.expert_scale, call.expert_scale), 1).to(dtype)[:, 0]
    call = call._replace(expert_scale=scale)
    assert_gradients(backend(*call), call)


@every_backend
@every_scoring
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", [0, 1, 2], ids=["grad", "logits", "experts"])
def test_layouts(backend, scoring_func, layout, which):
    """Strides are only a way to store the same numbers. A sum's gradient has a stride of zero."""
    call = random_call(scoring_func)
    layouts = ["contiguous"] * 3
    layouts[which] = layout
    same = list(call)
    same[which] = LAYOUTS[layout](call[which]).contiguous()
    got = backend(*call, layouts=layouts)
    assert got[0].is_contiguous()
    assert_bits(got, backend(*same))


@every_backend
@every_sum
@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("low", [-torch.inf, torch.nan])
def test_masked_experts_have_no_gradient(backend, scoring_func, renormalize, low):
    """Also where they were chosen, which happens when nothing else is left."""
    call = random_call(scoring_func, renormalize, scale=False)
    masked = torch.arange(24) % 3 == 0
    call.logits[:, masked] = low
    got = backend(*call)[0]
    assert (got[:, masked] == 0).all()
    assert got.isfinite().all()
    assert (got[:, ~masked] != 0).any()


@every_backend
@pytest.mark.parametrize("renormalize", [False, True])
def test_infinite_maxima_share_the_gradient_of_the_softmax(backend, renormalize):
    """They share its mass: s = 1/2 each, and 0 elsewhere."""
    logits = torch.tensor([[1.0, torch.inf, 2.0, torch.inf]])
    experts = torch.tensor([[1, 2]], dtype=torch.int32)
    grad = torch.tensor([[3.0, 1.0]])
    got, _ = backend(grad, logits, experts, "softmax", renormalize, 1.0, None)
    # Renormalised, expert 1 has all of the weight whatever its logit.
    assert got.tolist() == [[0, 0 if renormalize else 0.75, 0, 0 if renormalize else -0.75]]


@every_backend
@pytest.mark.parametrize("experts", [4, 17, 100])
def test_a_row_without_any_expert_shares_the_softmax_equally(backend, experts):
    """All masked: s = 1 / E, of which whatever fills up a vector has no part."""
    logits = torch.full((1, experts), -torch.inf)
    chosen = torch.tensor([[1]], dtype=torch.int32)
    got, _ = backend(torch.ones(1, 1), logits, chosen, "softmax", False, 1.0, None)
    s = 1 / experts
    expected = torch.full((1, experts), -s * s)
    expected[0, 1] += s
    torch.testing.assert_close(got, expected)


@every_backend
def test_the_same_bits_every_time(backend):
    call = random_call(tokens=700, experts=130, top_k=8)
    assert_bits(backend(*call), backend(*call))


@every_backend
@every_scoring
def test_a_token_has_the_gradient_that_it_has_alone(backend, scoring_func):
    call = random_call(scoring_func, scale=False)
    whole, _ = backend(*call)
    for token in range(len(whole)):
        alone, _ = backend(*(t[token : token + 1] for t in call[:3]), *call[3:])
        assert_bits(alone, whole[token : token + 1])


@every_backend
@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
@pytest.mark.parametrize("scale", [True, False], ids=["scaled", "unscaled"])
def test_opcheck(backend, scoring_func, scale):
    opcheck("grouped_topk_backward", random_call(scoring_func, tokens=5, scale=scale), backend)


def test_both_overloads_agree():
    call = random_call()
    operator = torch.ops.triselect.grouped_topk_backward
    assert_bits(operator.default(*call), operator.backend(*call, "auto"))


@pytest.mark.parametrize("expert", [24, 2**31 - 1])
@pytest.mark.parametrize("name", ["default", "auto", "eager"])
def test_an_expert_beyond_the_last_is_no_place_to_write_to(name, expert):
    """Nobody calls the operator with one; who does gets an error, not a broken process."""
    call = random_call()
    call.experts[-1, -1] = expert
    operator = torch.ops.triselect.grouped_topk_backward
    with pytest.raises((RuntimeError, ValueError)):
        operator.default(*call) if name == "default" else operator.backend(*call, name)


def passes_gradcheck(backend, scoring_func, renormalize):
    """Differences of float32 weights at steps that are large, and so are their tolerances.

    The error of a difference is that of the weights, 1e-7, over the step, 1e-2; its bend is the
    square of the step. Logits stand a quarter apart, so that no step changes a selection.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(3, 12, generator=generator).argsort(-1) / 4 - 0.9
    scale = 1 + 0.3 * torch.randn(12, generator=generator)

    def weights(logits, scale):
        options = {"scoring_func": scoring_func, "renormalize": renormalize}
        return triselect.grouped_topk(
            logits, 4, num_expert_group=2, expert_scale=scale, backend=backend.name, **options
        ).weights

    leaves = [backend.put(leaf).requires_grad_() for leaf in (logits, scale)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not a double precision floating point.*")
        return torch.autograd.gradcheck(
            weights, leaves, eps=1e-2, atol=1e-4, rtol=1e-3, raise_exception=False
        )


@every_trained_backend
@every_scoring
@every_sum
def test_gradcheck(backend, scoring_func, renormalize):
    assert passes_gradcheck(backend, scoring_func, renormalize)


BREAKS = {
    "one percent": lambda d_logits, d_scale: (d_logits * 1.01, d_scale),
    "one percent of the scale's": lambda d_logits, d_scale: (d_logits, d_scale * 1.01),
    "sign": lambda d_logits, d_scale: (-d_logits, d_scale),
    "only the selected": lambda d_logits, d_scale: (
        d_logits * (d_logits.abs() > d_logits.abs().median(-1, keepdim=True).values),
        d_scale,
    ),
}


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS.keys())
@every_trained_backend
def test_gradcheck_notices(monkeypatch, backend, broken):
    def wrong(right):
        return lambda *args: broken(*right(*args))

    auto, named = ops.backward[:2]
    wrong_operator = ops.backward._replace(auto=wrong(auto), named=wrong(named))
    monkeypatch.setattr(ops, "backward", wrong_operator)
    assert not passes_gradcheck(backend, "softmax", False)


@every_trained_backend
def test_a_compiled_training_step_has_the_same_gradients(backend, compiler):
    """Of a router: its weight and its scale."""
    setting = SETTINGS["pangu-pro"]
    _, options = inputs(setting, 1)
    scale = backend.put(options.pop("expert_scale"))
    generator = torch.Generator().manual_seed(0)
    weight = backend.put(torch.randn(setting.experts, 16, generator=generator) / 4)
    leaves = [weight.requires_grad_(), scale.requires_grad_()]

    def step(hidden, weight, scale):
        weights, _ = triselect.grouped_topk(
            hidden @ weight.t(), expert_scale=scale, backend=backend.name, **options
        )
        return (weights * hidden.mean(-1, keepdim=True)).square().sum()

    def trained(step):
        return lambda *args: torch.autograd.grad(step(*args), leaves)

    def batch(tokens):
        return backend.put(torch.randn(tokens, 16, generator=generator)), weight, scale

    rounded_alike = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
    assert_compiles_once(step, batch, compiler, few=(), wrap=trained, compare=rounded_alike)


@every_backend
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tokens(backend, dtype):
    call = random_call(tokens=4099, experts=256, top_k=8, dtype=dtype)
    assert_gradients(backend(*call), call)
