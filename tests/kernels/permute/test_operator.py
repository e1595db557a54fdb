"""The operator among PyTorch's: opcheck, one compilation for every number of tokens, meta."""

import numpy as np
import torch

import triselect

from ..backends import INDEX_DTYPES, assert_bits, opcheck
from ..compiling import assert_compiles_once
from .cases import assignments, every_backend


@every_backend
def test_opcheck(backend):
    rng = np.random.default_rng(0)
    for dtype in INDEX_DTYPES:
        opcheck("permute", (assignments(rng, 6, 3, 9, padding=0.2, dtype=dtype), 9), backend)


@every_backend
def test_one_compilation_for_every_number_of_tokens(backend, compiler):
    def permuted(experts):
        source, slot_of, offsets = triselect.permute(experts + 1, 13, backend=backend.name)
        return source * 2, slot_of, offsets

    def inputs(tokens):
        return (backend.put(assignments(np.random.default_rng(tokens), tokens, 4, 12)),)

    assert_compiles_once(permuted, inputs, compiler)


def test_both_overloads_agree():
    experts = assignments(np.random.default_rng(0), 30, 3, 9)
    operator = torch.ops.triselect.permute
    assert_bits(operator.default(experts, 9), operator.backend(experts, 9, "auto"))


def test_meta_tensors_have_the_shapes_of_real_ones():
    real = triselect.permute(torch.zeros(5, 3, dtype=torch.int64), 7)
    meta = triselect.permute(torch.zeros(5, 3, dtype=torch.int64, device="meta"), 7)
    assert [(t.shape, t.dtype) for t in meta] == [(t.shape, t.dtype) for t in real]
