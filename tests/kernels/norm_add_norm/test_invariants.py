"""What holds for any input: exact rows, independent rows, what each argument has a say in."""

import pytest
import torch

from ..backends import assert_bits, every_dtype
from .cases import PLACEMENTS, Case, assert_close, case, every_backend

every_placement = pytest.mark.parametrize("placement", PLACEMENTS)


def signs(rows: int, hidden: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows + hidden)
    return (torch.randint(0, 2, (rows, hidden), generator=generator) * 2 - 1).to(dtype)


@every_backend
@every_dtype
@every_placement
@pytest.mark.parametrize("hidden", [1, 5, 64, 100, 1500])
def test_rows_of_one_size_are_exact(backend, hidden, dtype, placement):
    """All numbers ±4: the norm leaves their signs."""
    sign = signs(3, hidden, dtype)
    two, half = torch.full((hidden,), 2, dtype=dtype), torch.full((hidden,), 0.5, dtype=dtype)
    got = backend(4 * sign, 4 * sign, two, half, eps=0.0, placement=placement)
    assert torch.equal(got.residual, sign * (6 if placement == "branch" else 2))
    if placement == "sum":  # no third in float32
        assert torch.equal(got.normed, sign / 2)
    torch.testing.assert_close(got.normed, sign / 2, rtol=2e-7, atol=0)


@every_backend
@every_dtype
@every_placement
def test_rows_do_not_know_of_each_other(backend, dtype, placement):
    """The same bits alone as among others, and on every run."""
    drawn = case(40, 333, dtype=dtype)
    together = backend(*drawn, placement=placement)
    assert_bits(together, backend(*drawn, placement=placement))
    for t in (0, 7, 39):
        alone = backend(drawn.y[t], drawn.residual[t], *drawn[2:], placement=placement)
        assert_bits(alone, (together.residual[t], together.normed[t]))


@every_backend
@every_placement
@pytest.mark.parametrize("what", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["y", "residual"])
def test_what_is_not_finite_spoils_its_row_and_no_other(backend, what, where, placement):
    drawn = case(5, 70)
    expected = backend(*drawn, placement=placement)
    getattr(drawn, where)[2, 69] = what
    got = backend(*drawn, placement=placement)
    for mine, theirs in zip(got, expected, strict=True):
        assert not mine[2, 69].isfinite()
        assert_bits(mine[[0, 1, 3, 4]], theirs[[0, 1, 3, 4]])
    assert got.normed[2].isnan().sum() >= 1
    if what != what and where == "y":
        assert got.residual[2].isnan().all()
        assert got.normed[2].isnan().all()


@every_backend
@every_dtype
def test_rows_of_zeros(backend, dtype):
    """eps keeps them zero."""
    _, residual, *weights = case(3, 50, dtype=dtype)
    zeros = torch.zeros_like(residual)
    got = backend(zeros, residual, *weights)
    assert torch.equal(got.residual, residual)
    assert_close(got, Case(zeros, residual, *weights))
    for placement in PLACEMENTS:
        for x in backend(zeros, zeros, *weights, placement=placement):
            assert (x == 0).all()


@every_backend
@every_dtype
def test_the_size_of_a_branch_is_forgotten(backend, dtype):
    drawn = case(6, 130, dtype=dtype)
    expected = backend(*drawn, eps=0.0)
    for factor in (0.25, 16.0):
        assert_bits(backend(drawn.y * factor, *drawn[1:], eps=0.0), expected)


@every_backend
@every_placement
def test_the_next_weight_has_no_say_in_the_residual(backend, placement):
    drawn = case(6, 130, dtype=torch.bfloat16)
    one, other = (
        backend(*drawn[:3], weight, placement=placement)
        for weight in (drawn.next_weight, drawn.next_weight.float() * 4)
    )
    assert_bits(one.residual, other.residual)
    torch.testing.assert_close(one.normed * 4, other.normed, rtol=0, atol=0)


@every_backend
def test_a_sum_does_not_care_what_is_the_residual(backend):
    drawn = case(6, 130)
    turned = Case(drawn.residual, drawn.y, *drawn[2:])
    assert_bits(backend(*turned, placement="sum"), backend(*drawn, placement="sum"))
    assert not torch.equal(backend(*turned).residual, backend(*drawn).residual)


@every_backend
def test_inputs_are_left_as_they_are(backend):
    drawn = case(6, 130)
    before = [x.clone() for x in drawn]
    backend(*drawn)
    assert_bits(tuple(drawn), tuple(before))
