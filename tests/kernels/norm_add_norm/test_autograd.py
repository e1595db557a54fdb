"""Gradients are those of rms_norm, composed; who cannot give them says so."""

import pytest
import torch

from triselect import BackendUnavailable
from triselect.ops.norm_add_norm import norm_add_norm

from ..backends import every_dtype
from .cases import PLACEMENTS, Case, case
from .test_oracles import composed

every_placement = pytest.mark.parametrize("placement", PLACEMENTS)


def gradients(function, drawn, dtype, **options):
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in drawn]
    r, z = function(*leaves, **options)
    generator = torch.Generator().manual_seed(1)
    up = torch.randn(2, *r.shape, generator=generator)
    return torch.autograd.grad((r, z), leaves, tuple(up.to(r)))


@pytest.mark.parametrize("backend", ["auto", "eager"])
@every_dtype
@every_placement
def test_gradients(backend, dtype, placement):
    drawn = case(2, 7, 50, dtype=dtype)
    got = gradients(norm_add_norm, drawn, None, placement=placement, backend=backend)
    expected = gradients(composed, drawn, torch.float64, eps=1e-5, placement=placement)
    for mine, theirs, x in zip(got, expected, drawn, strict=True):
        assert (mine.shape, mine.dtype) == (x.shape, x.dtype)
        rough = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
        torch.testing.assert_close(
            mine.double(), theirs, rtol=rough, atol=rough * float(theirs.abs().max())
        )


@pytest.mark.parametrize("leaf", range(4), ids=Case._fields)
@pytest.mark.parametrize("backend", ["native", "triton", "reference"])
def test_others_refuse(backend, leaf):
    drawn = case(3, 20)
    drawn[leaf].requires_grad_()
    message = f"backend '{backend}' has no gradient of norm_add_norm"
    with pytest.raises(BackendUnavailable, match=message):
        norm_add_norm(*drawn, backend=backend)
    assert all(x.requires_grad for x in norm_add_norm(*drawn)[1:])
    with torch.no_grad():
        got = norm_add_norm(*drawn, backend="reference")
    assert not any(x.requires_grad for x in got)
    with pytest.raises(ValueError, match="backend must be one of"):
        norm_add_norm(*drawn, backend="cuda")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
def test_without_gradients_the_operator_is_called(mode, monkeypatch):
    from triselect.kernels.norm_add_norm import eager

    from triselect.ops import operator

    drawn = case(3, 20)
    drawn.post_weight.requires_grad_()
    if operator.has_kernel("norm_add_norm", "CPU"):
        monkeypatch.setattr(eager, "norm_add_norm", None)
    with mode():
        assert not any(x.requires_grad for x in norm_add_norm(*drawn))


@every_placement
def test_gradients_of_a_compiled_function(compiler, placement):
    def through(*leaves):
        r, z = norm_add_norm(*leaves, placement=placement)
        return r * 2, z + 1

    compiled = torch.compile(through, backend=compiler, fullgraph=True, dynamic=True)
    for tokens in (3, 8):
        drawn = case(tokens, 40)
        got, expected = gradients(compiled, drawn, None), gradients(through, drawn, None)
        for mine, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
