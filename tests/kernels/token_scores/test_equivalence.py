"""Every backend scores as the reference does: sizes that models have, layouts, offsets."""

import numpy as np
import pytest
import torch

from ..backends import LAYOUTS, SAME_VALUES, every_dtype
from .cases import KEY_DTYPES, case, every_backend, integers, paged
from .compare import assert_exact, assert_scores

SHAPES = {
    "one query, one token": {"chunk": 1, "tokens": 1},
    "two queries, one token": {"chunk": 2, "tokens": 1},
    "one number": {"dim": 1, "tokens": 300},
    "decode": {"chunk": 1, "tokens": 1500, "dim": 128},
    "decode, many sequences": {"batch": 17, "chunk": 1, "tokens": 70, "dim": 128},
    "chunk": {"chunk": 130, "tokens": 1100, "dim": 128, "batch": 1},
    "a few queries": {"chunk": 3, "tokens": 3000, "dim": 64},
    "all heads": {"chunk": 1, "tokens": 200, "heads": (32, 8), "dim": 128},
    "all heads of a chunk": {"chunk": 40, "tokens": 200, "heads": (14, 2), "dim": 64},
    "a key for each head": {"chunk": 6, "tokens": 100, "heads": (5, 5), "dim": 80},
    "one key head": {"chunk": 6, "tokens": 100, "heads": (7, 1), "dim": 96},
}


@every_backend
@every_dtype
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(backend, sizes, dtype):
    q, k, options = case(dtype=dtype, **sizes)
    assert_scores(backend(q, k), q, k, options)


@every_backend
@pytest.mark.parametrize("chunk", [1, 2, 13])
@pytest.mark.parametrize("keys", KEY_DTYPES, ids=str)
def test_keys_of_8_bits(backend, keys, chunk):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        q, k, options = case(chunk=chunk, tokens=133, dim=72, dtype=dtype, keys=keys)
        assert_scores(backend(q, k, **options), q, k, options)


@every_backend
@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("heads", [None, (6, 3)])
@pytest.mark.parametrize("layout", [*LAYOUTS, "heads first"])
def test_layouts(backend, layout, heads, chunk):
    q, k, options = case(batch=2, chunk=chunk, tokens=45, heads=heads)
    got = backend(q, k, layout=layout)
    if layout == "expanded":
        q, k = (x[:1].expand_as(x).contiguous() for x in (q, k))
    assert_scores(got, q, k, options)


@every_backend
@pytest.mark.parametrize("chunk", [1, 3])
def test_a_scale_of_any_strides(backend, chunk):
    q, k, options = case(chunk=chunk, tokens=50, keys=torch.int8)
    scale = options["k_scale"]
    for layout in SAME_VALUES:
        got = backend(q, k, k_scale=LAYOUTS[layout](scale))
        assert_scores(got, q, k, options)


@every_backend
@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("size", [1, 16, 48])
def test_blocks_of_any_strides(backend, size, chunk):
    q, k, options = paged(case(chunk=chunk, tokens=96), size, np.random.default_rng(0))
    table = options["block_table"]
    for layout in SAME_VALUES:
        got = backend(q, k, layout=layout, **options | {"block_table": LAYOUTS[layout](table)})
        assert_scores(got, q, k, options)


@every_backend
def test_a_million_tokens(backend):
    q, k, options = case(batch=1, chunk=2, tokens=2**20 + 3, dim=2, data=integers)
    k[0, -1] = 9 * q[0].sum(0)  # the best, and the last
    assert_exact(backend(q, k), q, k, options)
    assert_exact(backend(q[:, :1], k), q[:, :1], k, options)


@every_backend
@pytest.mark.parametrize("chunk", [1, 2])
def test_offsets_beyond_32_bits(backend, chunk):
    """Tokens 2**27 elements apart; NumPy's memory costs nothing until it is written."""
    if backend.device != "cpu":
        pytest.skip("copies to a device are contiguous")
    q, k, options = case(batch=1, chunk=chunk, tokens=20, keys=torch.int8, data=integers)
    far = torch.from_numpy(np.empty(20 * 2**27, np.int8)).as_strided(k.shape, (0, 2**27, 1))
    far.copy_(k)
    assert_exact(backend(q, far, **options), q, k, options)
    blocks = far.transpose(0, 1)  # a token to a block
    table = torch.arange(20)[None]
    options = {"k_scale": options["k_scale"].T, "block_table": table}
    assert_exact(backend(q, blocks, **options), q, k.transpose(0, 1), options)
