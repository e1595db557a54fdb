"""The operators among PyTorch's: opcheck, one compilation for every number of tokens, meta."""

import torch

import triselect

from ..backends import DTYPES, assert_bits, opcheck
from ..compiling import assert_compiles_once
from .cases import case, every_backend, laid_out, permutation_of


@every_backend
def test_opcheck(backend):
    opcheck("finalize", tuple(case(dtype=torch.bfloat16)), backend)
    drawn = case(bias=torch.float32, residuals=2, dtype=torch.float16)
    opcheck("finalize", tuple(drawn), backend)
    opcheck("finalize_out", (*drawn, torch.zeros(7, 24, dtype=torch.float16)), backend)


@every_backend
def test_one_compilation_for_every_number_of_tokens(backend, compiler):
    def combined(rows, weights, slot_of, residual):
        options = {"residuals": [residual], "backend": backend.name}
        permutation = permutation_of(slot_of)
        new = triselect.finalize(rows * 2, weights, permutation, **options)
        out = torch.zeros_like(residual)
        triselect.finalize(rows, weights, permutation, out=out, **options)
        return new + 1, out * 2

    def inputs(tokens):
        rows, weights, slot_of, *_, residual, _ = case(tokens=tokens, padding=0.0, residuals=1)
        return tuple(map(backend.put, (rows, weights, slot_of, residual)))

    assert_compiles_once(combined, inputs, compiler)


def test_both_overloads_agree():
    drawn = case(tokens=30, bias=torch.float32, residuals=2)
    operator = torch.ops.triselect.finalize
    expected = operator.default(*drawn)
    assert_bits(operator.backend(*drawn, "auto"), expected)
    into = torch.ops.triselect.finalize_out
    for call in (into.default, lambda *args: into.backend(*args, "auto")):
        out = torch.empty(30, 24)
        assert call(*drawn, out) is None
        assert_bits(out, expected)


def test_meta_tensors_have_the_shapes_of_real_ones():
    for dtype in DTYPES:
        drawn = case(bias=torch.float32, residuals=1, dtype=dtype)
        real = laid_out(*drawn)
        meta = laid_out(*(x if x is None else x.to("meta") for x in drawn))
        assert (meta.shape, meta.dtype) == (real.shape, real.dtype)
