"""Gradients of rows, weights, bias and residuals, and the lack of any on the inference path."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import triselect

from ..backends import assert_bits, every_dtype, opcheck
from ..compiling import assert_compiles_once
from .cases import Case, case, every_backend, permutation_of

FLOATS = (0, 1, 4, 5, 6)  # of a case, those with a gradient


def in_float64(case: Case) -> Case:
    """The same numbers; rows of nobody, which are NaN, are 0."""
    floats = {i: case[i].detach().double().nan_to_num() for i in FLOATS if case[i] is not None}
    return Case(*(floats.get(i, x) for i, x in enumerate(case)))


def plain(case: Case) -> Tensor:
    """The formula in operators that PyTorch derives."""
    rows, weights, slot_of, experts, bias, *residuals = case
    there = slot_of >= 0
    said = rows[slot_of.clamp(min=0).long()]
    if bias is not None:
        there = there & (experts >= 0)
        said = said + bias[experts.clamp(min=0).long()]
    out = ((weights * there)[..., None] * said).sum(1)
    return sum((x for x in residuals if x is not None), out)


def leaves(case: Case) -> list[Tensor]:
    return [case[i].requires_grad_() for i in FLOATS if case[i] is not None]


def upstream(case: Case) -> Tensor:
    shape = (case.slot_of.shape[0], case.rows.shape[1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(case.rows.dtype)


def assert_gradients(backend, drawn: Case) -> None:
    """Computed in float32, and rounded once to the dtype of what they are of."""
    exact, grad = in_float64(drawn), upstream(drawn)
    mine, theirs = leaves(drawn), leaves(exact)
    got = torch.autograd.grad(backend(*drawn), mine, grad)
    expected = torch.autograd.grad(plain(exact), theirs, grad.double())
    for one, other, leaf in zip(got, expected, mine, strict=True):
        assert one.dtype == leaf.dtype
        rtol = max(torch.finfo(leaf.dtype).eps / 2, 1e-5) * 1.01
        torch.testing.assert_close(one.double(), other, rtol=rtol, atol=1e-5)


@every_backend
@every_dtype
@pytest.mark.parametrize("padding", [0.0, 0.4])
@pytest.mark.parametrize("residuals", [0, 2])
@pytest.mark.parametrize("bias", [None, "rows", "float32"])
def test_gradients_are_those_of_the_formula(backend, dtype, padding, residuals, bias):
    of_bias = {None: None, "rows": dtype, "float32": torch.float32}[bias]
    drawn = case(9, padding=padding, residuals=residuals, bias=of_bias, dtype=dtype)
    assert_gradients(backend, drawn)


@every_backend
@pytest.mark.parametrize("hidden", [1, 1023, 1024, 2500])
def test_as_many_columns_as_you_like(backend, hidden):
    assert_gradients(backend, case(tokens=3, hidden=hidden, bias=torch.float32))


@every_backend
def test_an_expert_twice_has_both_gradients(backend):
    """Of one token, too."""
    drawn = case(tokens=30, top_k=6, experts=2, bias=torch.float32)
    assert (drawn.experts[:, 1:] == drawn.experts[:, :-1]).any()
    assert_gradients(backend, drawn)


@every_backend
def test_without_an_expert_there_is_no_gradient(backend):
    drawn = case(padding=0.0, bias=torch.float32)
    drawn.experts[::2, 1] = -1
    assert_gradients(backend, drawn)
    _, weights, *_ = torch.autograd.grad(backend(*drawn).sum(), leaves(drawn))
    assert (weights[::2, 1] == 0).all()


@every_backend
@pytest.mark.parametrize("which", FLOATS)
def test_only_what_is_asked_for(backend, which):
    drawn = case(bias=torch.float32, residuals=2)
    leaf = drawn[which].requires_grad_()
    backend(*drawn).sum().backward()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad != 0).any()
    assert all(x is leaf or x.grad is None for x in drawn)


@every_backend
def test_a_residual_twice_has_twice_the_gradient(backend):
    drawn = case(residuals=1)
    leaf = drawn.residual.requires_grad_()
    backend(*drawn[:6], leaf).backward(upstream(drawn))
    assert_bits(leaf.grad, 2 * upstream(drawn))


@every_backend
@pytest.mark.parametrize("sizes", [{"tokens": 0}, {"hidden": 0}, {"padding": 1.0}], ids=str)
def test_of_nothing(backend, sizes):
    drawn = case(**sizes, bias=torch.float32, residuals=1)
    some = leaves(drawn)
    backend(*drawn).sum().backward()
    for leaf in some[:3]:
        assert leaf.grad.shape == leaf.shape
        assert (leaf.grad == 0).all()


@every_backend
def test_more_rows_than_assignments(backend):
    """They have no gradient, whatever they say."""
    drawn = case(tokens=5)
    rows = torch.cat((drawn.rows, torch.full((50, 24), torch.nan))).requires_grad_()
    backend(rows, *drawn[1:]).sum().backward()
    assert (rows.grad[20:] == 0).all()


@every_backend
def test_the_same_bits_every_time(backend):
    drawn = case(tokens=200, hidden=64, experts=3, bias=torch.bfloat16, dtype=torch.bfloat16)
    some = leaves(drawn)
    first = torch.autograd.grad(backend(*drawn), some, upstream(drawn))
    for _ in range(3):
        assert_bits(torch.autograd.grad(backend(*drawn), some, upstream(drawn)), first)


@every_backend
def test_a_gradient_of_the_gradient(backend):
    """The backward is itself made of operators that PyTorch derives."""
    drawn = case(padding=0.0, bias=torch.float32)
    exact = in_float64(drawn)
    found = []
    for some, call, args in ((leaves(drawn), backend, drawn), (leaves(exact), plain, [exact])):
        value = call(*args)
        first = torch.autograd.grad(value.pow(3).sum(), some, create_graph=True)
        found.append(torch.autograd.grad(sum(x.pow(2).sum() for x in first), some))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-3)


class Calls(TorchDispatchMode):
    """Names of the operators of this library that run inside."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "triselect":
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def called(drawn: Case, **options) -> list[str]:
    rows, weights, slot_of, experts, bias, *residuals = drawn
    with Calls() as calls:
        triselect.finalize(
            rows,
            weights,
            permutation_of(slot_of),
            experts=experts,
            bias=bias,
            residuals=residuals,
            **options,
        )
    return calls.names


@pytest.mark.parametrize("requires_grad", [False, True])
def test_inference_goes_around_autograd(requires_grad):
    """The overload without autograd runs, whether nothing requires grad or no_grad says so."""
    drawn = case(bias=torch.float32, residuals=2)
    if requires_grad:
        leaves(drawn)
    out = torch.empty_like(drawn.residual)
    with torch.set_grad_enabled(not requires_grad):
        assert called(drawn) == ["triselect.finalize.default"]
        assert called(drawn, out=out) == ["triselect.finalize_out.default"]


@pytest.mark.parametrize("which", FLOATS)
def test_training_goes_through_autograd(which):
    drawn = case(bias=torch.float32, residuals=2)
    drawn[which].requires_grad_()
    assert called(drawn) == ["triselect.finalize.backend"]


@every_backend
def test_opcheck_training(backend):
    drawn = case(bias=torch.float32, residuals=2)
    opcheck("finalize", tuple(drawn), backend, leaves=FLOATS)


@every_backend
def test_gradients_compile_once(backend, compiler):
    def combined(rows, weights, slot_of, experts, bias, residual):
        return triselect.finalize(
            rows * 2,
            weights,
            permutation_of(slot_of),
            experts=experts,
            bias=bias,
            residuals=[residual],
            backend=backend.name,
        )

    def inputs(tokens):
        drawn = case(tokens=tokens, bias=torch.float32, residuals=1)
        return tuple(map(backend.put, drawn[:6]))

    def gradients(function):
        def call(*args):
            some = [args[i].requires_grad_() for i in FLOATS[:4]]
            return torch.autograd.grad(function(*args).pow(2).sum(), some)

        return call

    def close(got, expected):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4, equal_nan=True)

    assert_compiles_once(combined, inputs, compiler, few=(), wrap=gradients, compare=close)
