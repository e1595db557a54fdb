"""Every backend selects what the reference does: sizes, scores that tie, ranges, reach, layouts."""

import numpy as np
import pytest
import torch

from ..backends import INDEX_DTYPES, LAYOUTS, assert_bits, dtype_name, every_dtype
from .cases import (
    assert_selects_as_the_reference,
    every_backend,
    every_kind,
    ranges_of,
    scores_of,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@every_backend
@every_dtype
@every_kind
def test_scores(backend, kind, dtype):
    """From a row of 5000: few tokens, more, and almost half of them."""
    scores = scores_of(rng(), 2, 5000, kind, dtype)
    for k in (1, 100, 2000):
        assert_selects_as_the_reference(backend(scores, k), scores, k)


@every_backend
@pytest.mark.parametrize("tokens", [*range(20), 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 300])
def test_sizes(backend, tokens):
    """All vectors and their tails; k from one to more than there are."""
    scores = scores_of(rng(), 3, tokens, "few values")
    for k in (1, 2, 16, tokens // 2 + 1, tokens + 1):
        for proximity in (0, 1, 5):
            got = backend(scores, k, proximity=proximity)
            assert_selects_as_the_reference(got, scores, k, proximity)


@every_backend
@every_kind
def test_reach(backend, kind):
    """Plateaus of 2 * proximity + 1; at last all tokens are as good as the best."""
    scores = scores_of(rng(), 1, 2100, kind)
    for proximity in (1, 3, 17, 1100, 2099, 5000):
        got = backend(scores, 300, proximity=proximity)
        assert_selects_as_the_reference(got, scores, 300, proximity)


@every_backend
@every_dtype
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("proximity", [0, 2])
def test_ranges(backend, proximity, index_dtype, dtype):
    scores = scores_of(rng(), 60, 77, "few values", dtype)
    start, end = (bound.to(index_dtype) for bound in ranges_of(rng(1), 60, 77))
    for some in ({"start": start, "end": end}, {"start": start}, {"end": end}):
        got = backend(scores, 20, proximity=proximity, **some)
        assert_selects_as_the_reference(got, scores, 20, proximity, **some)


@every_backend
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("proximity", [0, 2])
def test_layouts(backend, proximity, layout, dtype):
    scores = scores_of(rng(), 9, 700, "few values", dtype)
    got = backend(scores, 40, proximity=proximity, layout=layout)
    scores = LAYOUTS[layout](scores).contiguous()
    assert_selects_as_the_reference(got, scores, 40, proximity)
    assert_bits(got, backend(scores, 40, proximity=proximity))


@every_backend
def test_bounds_of_any_strides(backend):
    scores = scores_of(rng(), 6, 50)
    start = torch.arange(12)[::2]
    end = torch.tensor([40]).expand(6)
    got = backend(scores, 9, start=start, end=end)
    assert_selects_as_the_reference(got, scores, 9, start=start, end=end)


@every_backend
def test_rows_far_apart(backend):
    """2**30 numbers, so that offsets take more than 32 bits; nothing else of them is touched."""
    if backend.device != "cpu":
        pytest.skip("a device would give it memory")
    far = torch.from_numpy(np.empty(3 * 2**30 + 40, np.float32))
    scores = far.as_strided((4, 40), (2**30, 1))
    scores.copy_(scores_of(rng(), 4, 40))
    assert_selects_as_the_reference(backend(scores, 9), scores, 9)


@every_backend
@pytest.mark.parametrize("kind", ["normal", "at the boundary", "all equal", "one coarse bin"])
def test_what_is_read_of_a_long_context(backend, kind):
    """131072 tokens of several sequences, and 2048 of each."""
    scores = scores_of(rng(), 3, 131072, kind)
    start, end = torch.tensor([128, 128, 1]), torch.tensor([131072 - 4096, 5001, 131071])
    options = {"proximity": 1, "start": start, "end": end}
    got = backend(scores, 2048, **options)
    assert_selects_as_the_reference(got, scores, 2048, **options)
    assert_bits(got, backend(scores.clone(), 2048, **options))
