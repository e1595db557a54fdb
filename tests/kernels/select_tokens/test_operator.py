"""The operator among PyTorch's: opcheck, one compilation for every number of tokens, meta."""

import numpy as np
import torch

from triselect.ops import select_tokens

from ..backends import DTYPES, assert_bits, opcheck
from ..compiling import assert_compiles_once
from .cases import every_backend, scores_of


@every_backend
def test_opcheck(backend):
    rng = np.random.default_rng(0)
    bound = torch.tensor([2, 7], dtype=torch.int32)
    for dtype in DTYPES:
        scores = scores_of(rng, 2, 11, "few values", dtype)
        for arguments in ((4, 0, None, None), (20, 2, bound, bound.long() + 3)):
            opcheck("select_tokens", (scores, *arguments), backend)


@every_backend
def test_one_compilation_for_every_number_of_tokens(backend, compiler):
    def selected(scores, start):
        return select_tokens(scores - 1, 5, proximity=1, start=start, backend=backend.name) * 2

    def inputs(tokens):
        scores = scores_of(np.random.default_rng(tokens), 3, tokens, "few values")
        return backend.put(scores), backend.put(torch.tensor([0, tokens // 2, tokens]))

    assert_compiles_once(selected, inputs, compiler)


def test_both_overloads_agree():
    scores = scores_of(np.random.default_rng(0), 3, 40)
    operator = torch.ops.triselect.select_tokens
    assert_bits(
        operator.default(scores, 7, 1, None, None),
        operator.backend(scores, 7, 1, None, None, "auto"),
    )


def test_meta_tensors_have_the_shapes_of_real_ones():
    real = select_tokens(torch.zeros(3, 11), 20)
    meta = select_tokens(torch.zeros(3, 11, device="meta"), 20)
    assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())
