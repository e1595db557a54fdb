"""Every backend merges as the reference does; merging is that of a softmax over both sets."""

import numpy as np
import pytest
import torch

from triselect.ops import Attention
from triselect.ops.merge import merge

from ..backends import DTYPES, SAME_VALUES, assert_bits, every_dtype, opcheck
from ..compiling import assert_compiles_once
from .cases import Pair, assert_merged, every_backend, random_pair

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
SHAPES = [(1, 1), (1,), (7, 3), (2, 3, 4, 16), (5, 6, 128), (3, 1, 200), (1, 1, 32, 80)]


@every_backend
@every_dtype
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spread", [0.1, 3.0, 80.0])
def test_shapes(backend, shape, spread, dtype):
    pair = random_pair(*shape, dtype=dtype, spread=spread)
    assert_merged(backend(*pair), pair)


@every_backend
@every_dtype
@pytest.mark.parametrize("layout", SAME_VALUES)
def test_layouts(backend, layout, dtype):
    pair = random_pair(4, 5, 6, 24, dtype=dtype)
    assert_merged(backend(*pair, layout=layout), pair)


@every_backend
def test_some_shapes_have_nothing(backend):
    for shape in ((0, 16), (3, 0, 16), (4, 0)):
        out, lse = backend(*random_pair(*shape))
        assert (out.shape, lse.shape) == (shape, shape[:-1])


@every_backend
def test_commutative(backend):
    pair = random_pair(50, 16)
    there, back = backend(*pair), backend(*pair[2:], *pair[:2])
    torch.testing.assert_close(there, back, **CLOSE)


@every_backend
def test_associative(backend):
    """Also where some, or all, attended to nothing."""
    a, b = (random_pair(200, 16, seed=seed, empty=0.4) for seed in range(2))
    left = backend(*backend(*a), *b[:2])
    right = backend(*a[:2], *backend(*a[2:], *b[:2]))
    torch.testing.assert_close(left, right, **CLOSE)
    assert left.lse.isneginf().any()


@every_backend
def test_nothing_leaves_the_other_as_it_is(backend):
    """To the bit, whatever memory the empty one's output is."""
    pair = random_pair(40, 16, empty=0.0)
    for junk in (0.0, torch.nan, torch.inf):
        nothing = torch.full_like(pair.out_b, junk), torch.full_like(pair.lse_b, -torch.inf)
        one = Attention(*pair[:2])
        torch.testing.assert_close(backend(*one, *nothing), one, rtol=1e-6, atol=0)
        torch.testing.assert_close(backend(*nothing, *one), one, rtol=1e-6, atol=0)
        out, lse = backend(*nothing, *nothing)
        assert (out == 0).all()
        assert lse.isneginf().all()


@every_backend
def test_nan_stays(backend):
    """Of what was attended to, in its row and no other."""
    pair = random_pair(3, 4, empty=0.0)
    pair.lse_a[0] = torch.nan
    pair.out_b[1, 2] = torch.nan
    out, lse = backend(*pair)
    assert out[0].isnan().all()
    assert out[1].isnan().tolist() == [False, False, True, False]
    assert out[2].isfinite().all()
    assert lse.isnan().tolist() == [True, False, False]


@every_backend
def test_large_sums(backend):
    """exp(lse) would overflow, or be zero."""
    for offset in (1000.0, -1000.0):
        pair = random_pair(60, 8, empty=0.0)
        expected = backend(*pair)
        moved = Pair(pair.out_a, pair.lse_a + offset, pair.out_b, pair.lse_b + offset)
        got = backend(*moved)
        torch.testing.assert_close(got.out, expected.out, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(got.lse, expected.lse + offset)


@every_backend
def test_of_a_hundred_parts(backend):
    """One softmax, in any number of pieces."""
    rng = np.random.default_rng(0)
    s, v = rng.standard_normal((100, 9)) * 5, rng.standard_normal((100, 9, 4))
    merged = Attention(torch.zeros(9, 4), torch.full((9,), -torch.inf))
    for row, value in zip(s, v, strict=True):
        part = torch.from_numpy(value).float(), torch.from_numpy(row).float()
        merged = backend(*merged, *part)
    p = np.exp(s)
    np.testing.assert_allclose(merged.lse, np.log(p.sum(0)), rtol=1e-5)
    expected = (p[..., None] * v).sum(0) / p.sum(0)[:, None]
    np.testing.assert_allclose(merged.out, expected, rtol=1e-4, atol=1e-5)


@every_backend
def test_opcheck(backend):
    for dtype in DTYPES:
        opcheck("merge", tuple(random_pair(3, 5, 8, dtype=dtype)), backend)


@every_backend
def test_one_compilation_for_every_number_of_rows(backend, compiler):
    def merging(out_a, lse_a, out_b, lse_b):
        out, lse = merge(out_a * 2, lse_a, out_b, lse_b, backend=backend.name)
        return out + 1, lse

    def inputs(rows):
        return tuple(map(backend.put, random_pair(rows, 5, 24, empty=0.0)))

    assert_compiles_once(merging, inputs, compiler)


def test_both_overloads_agree():
    pair = random_pair(30, 8)
    operator = torch.ops.triselect.merge
    assert_bits(operator.default(*pair), operator.backend(*pair, "auto"))


def test_meta_tensors_have_the_shapes_of_real_ones():
    for dtype in DTYPES:
        pair = random_pair(2, 3, 8, dtype=dtype)
        results = merge(*(x.to("meta") for x in pair)), merge(*pair)
        mine, theirs = ([(t.shape, t.dtype) for t in result] for result in results)
        assert mine == theirs
