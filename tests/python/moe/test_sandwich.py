"""Post-norms: what their weights begin with, and how they are folded into the projection before."""

import doctest
import importlib
import math
import re

import pytest
import torch
from torch.nn.functional import linear, rms_norm

from triselect import norm_add_norm
from triselect.moe import absorb_post_norm, post_norm_init

sandwich = importlib.import_module("triselect.moe.sandwich")


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def of_one_size(tokens: int, hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A map that keeps lengths, and activations that all have the same: so has what it gives."""
    weight = torch.linalg.qr(random(hidden, hidden)).Q
    activations = random(tokens, hidden, seed=1)
    return weight, activations / activations.norm(dim=1, keepdim=True) * 3


def test_begins_as_the_paper_says():
    """Pangu Ultra has 94 layers."""
    init = post_norm_init(94)
    assert init.attention == pytest.approx(0.283 / math.sqrt(94))
    assert init.mlp == pytest.approx(0.432 / math.sqrt(94))
    assert post_norm_init(1) == (0.283, 0.432)
    assert post_norm_init(4, c_attention=1.0, c_mlp=0.5) == (0.5, 0.25)


def test_the_residual_does_not_grow_with_depth():
    """Steps of unit size times γ, two to a layer, add up to the same for any number of layers."""
    for layers in (1, 16, 400):
        init = post_norm_init(layers)
        variance = layers * (init.attention**2 + init.mlp**2)
        assert variance == pytest.approx(0.283**2 + 0.432**2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 6), (1, 1, 6)])
def test_exact_for_one_token(shape, bias):
    weight, gamma, x = random(5, 6), random(5, seed=1), random(*shape, seed=2)
    b = random(5, seed=3) if bias else None
    got = absorb_post_norm(weight, gamma, x, bias=b, eps=0.1)
    expected = rms_norm(linear(x, weight, b), (5,), gamma, 0.1)
    torch.testing.assert_close(linear(x, got.weight, got.bias), expected)
    assert got.deviation.mean == pytest.approx(0, abs=1e-14)
    assert got.deviation.largest == pytest.approx(0, abs=1e-14)


def test_exact_where_the_rms_is_constant():
    """Also for tokens that were not there."""
    weight, activations = of_one_size(60, 12)
    gamma = random(12, seed=2)
    seen, new = activations.view(2, 30, 12)
    got = absorb_post_norm(weight, gamma, seen)
    torch.testing.assert_close(
        linear(new, got.weight), rms_norm(linear(new, weight), (12,), gamma, 1e-5)
    )
    assert got.bias is None
    assert 0 <= got.deviation.mean <= got.deviation.largest <= 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_deviation_has_the_rounding_of_the_weight(dtype):
    """Which is all there is to it here: ones and zeros are exact in any dtype."""
    _, x = of_one_size(60, 12)
    gamma, low = random(12, seed=2), torch.finfo(dtype).eps
    got = absorb_post_norm(torch.eye(12, dtype=dtype), gamma, x)
    assert got.weight.dtype == dtype
    assert low / 50 < got.deviation.mean < got.deviation.largest <= low / 2


def test_the_mean_is_over_tokens_of_the_inverse():
    """rms 1, 2 and 4: the mean of 1, 1/2 and 1/4 is 7/12, which is off by 5/12, 2/12 and 16/12."""
    x = torch.tensor([[[1.0, -1.0]], [[2.0, 2.0]], [[-4.0, 4.0]]], dtype=torch.float64)
    got = absorb_post_norm(torch.eye(2).double(), torch.tensor([3.0, -5.0]), x, eps=0.0)
    expected = torch.tensor([[3.0, 0.0], [0.0, -5.0]]).double() * 7 / 12
    torch.testing.assert_close(got.weight, expected)
    assert got.deviation.mean == pytest.approx((5 + 2 + 16) / 36)
    assert got.deviation.largest == pytest.approx(16 / 12)


@pytest.mark.parametrize("bias", [False, True])
def test_the_deviation_is_that_of_the_outputs(bias):
    """Of each token, as a length; whatever the weight of the norm is."""
    weight, x, b = random(20, 30) / 5, random(8, 50, 30, seed=1), random(20, seed=2)
    for gamma in (torch.ones(20).double(), random(20, seed=3)):
        got = absorb_post_norm(weight, gamma, x, bias=b if bias else None, eps=0.01)
        y = linear(x, weight, b if bias else None)
        exact = rms_norm(y, (20,), gamma, 0.01)
        off = (linear(x, got.weight, got.bias) - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert got.deviation.mean == pytest.approx(float(off.mean()))
        assert got.deviation.largest == pytest.approx(float(off.max()))
        rms = (y.square().mean(-1) + 0.01).sqrt()
        scale = float((1 / rms).mean())
        torch.testing.assert_close(off, (scale * rms - 1).abs())
        torch.testing.assert_close(got.weight, gamma[:, None] * weight * scale)
        if bias:
            torch.testing.assert_close(got.bias, gamma * b * scale)
    assert got.deviation.largest > got.deviation.mean > 0.01


def test_a_zero_output_has_no_deviation():
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    got = absorb_post_norm(torch.eye(2).double(), torch.ones(2), x, eps=1.0)
    scale = (1 + 0.5**0.5) / 2
    off = abs(scale * 2**0.5 - 1)
    assert got.deviation == pytest.approx((off / 2, off))


def test_a_layer_without_its_post_norm():
    """As norm_add_norm has it, without the norm."""
    weight, x = of_one_size(40, 16)
    gamma, following, residual = random(16, seed=3), random(16, seed=4), random(40, 16, seed=5)
    absorbed = absorb_post_norm(weight, gamma, x)
    with_norm = norm_add_norm(
        *(t.float() for t in (linear(x, weight), residual, gamma, following)), placement="branch"
    )
    without = residual + linear(x, absorbed.weight)
    torch.testing.assert_close(with_norm.residual, without.float())
    torch.testing.assert_close(
        with_norm.normed, rms_norm(without, (16,), following, 1e-5).float(), rtol=1e-5, atol=1e-5
    )


def test_any_number_of_tokens_at_a_time(monkeypatch):
    args = random(6, 9), random(6, seed=1), random(101, 9, seed=2)
    expected = absorb_post_norm(*args)
    monkeypatch.setattr(sandwich, "TOKENS", 10)
    got = absorb_post_norm(*args)
    torch.testing.assert_close(got.weight, expected.weight, rtol=1e-14, atol=0)
    assert got.deviation == pytest.approx(expected.deviation, rel=1e-12)


def test_dtypes_are_kept_and_nothing_is_written():
    weight, bias = random(6, 9, dtype=torch.bfloat16), random(6, seed=1, dtype=torch.float32)
    gamma, x = random(6, seed=2, dtype=torch.float16), random(7, 9, seed=3, dtype=torch.bfloat16)
    before = [t.clone() for t in (weight, gamma, x, bias)]
    weight.requires_grad_()
    got = absorb_post_norm(weight, gamma, x, bias=bias)
    assert (got.weight.dtype, got.bias.dtype) == (torch.bfloat16, torch.float32)
    assert not got.weight.requires_grad
    for now, then in zip((weight, gamma, x, bias), before, strict=True):
        assert torch.equal(now, then)


WEIGHT, GAMMA, X = random(5, 6), random(5, seed=1), random(7, 6, seed=2)
BAD = {
    "weight-list": ({"weight": [[1.0]]}, TypeError, "weight must be a tensor, got list"),
    "weight-int": ({"weight": WEIGHT.int()}, TypeError, "weight must be floating point, got"),
    "weight-1d": (
        {"weight": WEIGHT[0]},
        ValueError,
        "weight must be (hidden, intermediate), got shape (6,)",
    ),
    "weight-empty": (
        {"weight": WEIGHT[:0]},
        ValueError,
        "weight must be (hidden, intermediate), got shape (0, 6)",
    ),
    "norm-shape": (
        {"norm_weight": GAMMA[1:]},
        ValueError,
        "norm_weight must be (hidden,) = (5,), got shape (4,)",
    ),
    "norm-none": ({"norm_weight": None}, TypeError, "norm_weight must be a tensor, got NoneType"),
    "norm-device": (
        {"norm_weight": GAMMA.to("meta")},
        ValueError,
        "norm_weight must be on cpu as weight, got meta",
    ),
    "bias-shape": ({"bias": X[0]}, ValueError, "bias must be (hidden,) = (5,), got shape (6,)"),
    "bias-list": ({"bias": [0.0]}, TypeError, "bias must be a tensor, got list"),
    "activations-outputs": (
        {"activations": X[:, 1:]},
        ValueError,
        "activations must be (..., 6), one token or more, got shape (7, 5)",
    ),
    "activations-1d": (
        {"activations": X[0]},
        ValueError,
        "activations must be (..., 6), one token or more, got shape (6,)",
    ),
    "activations-none": (
        {"activations": X[:0]},
        ValueError,
        "activations must be (..., 6), one token or more, got shape (0, 6)",
    ),
    "activations-nan": (
        {"activations": X * torch.nan},
        ValueError,
        "activations must give a finite mean of 1 / rms, got nan",
    ),
    "activations-zero": (
        {"activations": X * 0, "eps": 0.0},
        ValueError,
        "activations must give a finite mean of 1 / rms, got inf",
    ),
    "eps-negative": ({"eps": -1.0}, ValueError, "eps must be at least 0 and finite, got -1.0"),
    "eps-text": ({"eps": "1"}, TypeError, "eps must be a number, got str"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message):
    arguments = {"weight": WEIGHT, "norm_weight": GAMMA, "activations": X} | arguments
    with pytest.raises(error, match=re.escape(message)):
        absorb_post_norm(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
        ({"num_layers": 2.0}, TypeError, "num_layers must be an int, got float"),
        ({"num_layers": 2, "c_mlp": math.nan}, ValueError, "c_mlp must be at least 0 and finite"),
        ({"num_layers": 2, "c_attention": None}, TypeError, "c_attention must be a number, got"),
    ],
)
def test_bad_initialisation_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        post_norm_init(**arguments)


def test_the_examples_run():
    results = doctest.testmod(sandwich)
    assert results.attempted > 0
    assert results.failed == 0
