"""torch.nn.functional.rms_norm, composed: exactly in float64, and no better in low precision."""

import numpy as np
import pytest
import torch
from torch.nn.functional import rms_norm

from ..backends import every_dtype
from .cases import PLACEMENTS, Case, assert_close, case, every_backend, half_a_step


def composed(y, residual, post_weight, next_weight, eps, placement):
    hidden = y.shape[-1:]
    if placement == "branch":
        r = residual + rms_norm(y, hidden, post_weight, eps)
    else:
        r = rms_norm(residual + y, hidden, post_weight, eps)
    return r, rms_norm(r, hidden, next_weight, eps)


def in_float64(case, eps, placement):
    return tuple(x.numpy() for x in composed(*(x.double() for x in case), eps, placement))


@every_backend
@every_dtype
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("shape", [(2, 3, 33), (9, 200), (2, 5120)])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_in_float64(backend, shape, eps, dtype, placement):
    drawn = case(*shape, dtype=dtype, sizes=(0.5, 2.0))
    got = backend(*drawn, eps=eps, placement=placement)
    assert_close(got, drawn, eps, placement, expected=in_float64(drawn, eps, placement))


@every_backend
@every_dtype
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("shape", [(64, 96), (4, 5120)])
def test_errors_are_no_larger_than_plain_ones(backend, shape, dtype, placement):
    """Than those of the composition in the dtype itself, but for one rounding to it."""
    drawn = case(*shape, dtype=dtype)
    expected = in_float64(drawn, 1e-5, placement)
    plain = composed(*drawn, 1e-5, placement)
    for mine, theirs, right in zip(
        backend(*drawn, placement=placement), plain, expected, strict=True
    ):
        a, b = (abs(x.double().numpy() - right) for x in (mine, theirs))
        step = np.maximum(half_a_step(right, dtype), abs(right) * 2.0**-24)
        assert a.mean() <= b.mean() + step.mean() / 2  # what roundings come to on average
        assert a.max() <= b.max() + step.max()
        if dtype != torch.float32:
            assert a.mean() < b.mean()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_reference_is_the_same_formula(placement):
    """Neither has anything from the other; float64 throughout."""
    from triselect.kernels.norm_add_norm import reference

    drawn = Case(*(x.double() for x in case(20, 77, sizes=(3.0, 0.3))))
    got = reference.norm_add_norm(*(x.numpy() for x in drawn), 0.01, placement)
    for mine, theirs in zip(got, composed(*drawn, 0.01, placement), strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-12)
