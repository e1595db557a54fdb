"""The operator among PyTorch's: opcheck, one compilation for all sizes of a cache, meta, memory."""

import numpy as np
import pytest
import torch

from triselect.ops.token_scores import token_scores

from ..backends import assert_bits, opcheck
from ..compiling import assert_compiles_once
from ..memory import growth
from .cases import case, every_backend, paged


@every_backend
def test_opcheck(backend):
    q, k, _ = case(dtype=torch.bfloat16, heads=(4, 2))
    opcheck("token_scores", (q, k, None, None, None, None, None), backend)
    q, k, options = paged(case(keys=torch.int8), 16, np.random.default_rng(0), holes=0.3)
    index = torch.tensor([3, 5], dtype=torch.int32)
    args = (q, k, options["k_scale"], index, options["end"], index - 1, options["block_table"])
    opcheck("token_scores", args, backend)


@every_backend
@pytest.mark.parametrize("chunk", [1, 3])
def test_one_compilation_for_every_number_of_tokens(backend, compiler, chunk):
    def scored(q, k, end):
        return token_scores(q * 2, k, end=end, backend=backend.name) + 1

    def inputs(tokens):
        q, k, _ = case(tokens, batch=5, chunk=chunk, tokens=tokens, dim=8)
        return tuple(map(backend.put, (q, k, torch.full((5,), tokens // 2))))

    def close(got, expected):  # how eager's products are rounded depends on their sizes
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)

    assert_compiles_once(scored, inputs, compiler, compare=close)


def test_both_overloads_agree():
    q, k, _ = case()
    args = (q, k, None, None, None, None, None)
    operator = torch.ops.triselect.token_scores
    assert_bits(operator.default(*args), operator.backend(*args, "auto"))


def test_meta_tensors_have_the_shapes_of_real_ones():
    q, k, options = paged(case(tokens=40), 16, np.random.default_rng(0))
    real = token_scores(q, k, **options)
    assert real.shape == (2, 48)
    options = {name: x.to("meta") for name, x in options.items()}
    meta = token_scores(q.to("meta"), k.to("meta"), **options)
    assert (meta.shape, meta.dtype) == (real.shape, real.dtype)


@every_backend
def test_nothing_of_the_size_of_queries_times_tokens(backend):
    if backend.device != "cpu":
        pytest.skip("the device's memory is looked at in test_triton.py")
    q, k, _ = case(batch=1, chunk=512, tokens=65536, dim=8)
    assert growth(lambda: backend(q, k)) < 512 * 65536 * 4 / 2
