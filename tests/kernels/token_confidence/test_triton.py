"""The Triton kernels: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run them too (test_equivalence, test_properties).
"""

from unittest import mock

import numpy as np
import pytest
import torch
from triselect.kernels.token_confidence import reference

from triselect.ops import partial_confidence, token_confidence

from ..backends import LAYOUTS, Backend, assert_bits, every_dtype, stored
from ..launches import launches
from .cases import (
    assert_confident_as_the_reference,
    draws,
    every_kind,
    every_score,
    expected,
    logits_of,
)

confidence = Backend(stored(token_confidence), "triton", "cpu")
partial = Backend(partial_confidence, "triton", "cpu")

# The same few tokens in one piece of one tile, of several, and in pieces.
WAYS = {"one tile": (2**13, 2**11), "tiles": (2**13, 128), "pieces": (256, 128)}
every_way = pytest.mark.parametrize("way", WAYS)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy on inf - inf


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def smaller(way: str):
    from triselect.kernels.token_confidence import triton

    piece, tile = WAYS[way]
    return mock.patch.multiple(triton, PIECE=piece, TILE=tile)


def assert_same(way, logits, layout="contiguous", **options):
    with smaller(way):
        got = confidence(logits, layout=layout, **options)
    assert_confident_as_the_reference(got, LAYOUTS[layout](logits).contiguous(), **options)


@pytest.mark.interpret
@every_way
@every_kind
def test_kinds(way, kind):
    logits = logits_of(rng(), 2, 600, kind)
    for draw in ({}, draws(rng(1), 2)):
        for score in ("margin", "neg_entropy"):
            assert_same(way, logits, score=score, temperature=0.8, **draw)


@pytest.mark.interpret
@every_way
@every_dtype
def test_dtypes(way, dtype):
    logits = logits_of(rng(), 3, 300, "normal", dtype)
    for draw in ({}, draws(rng(1), 3)):
        assert_same(way, logits, mask_token=7, **draw)


@pytest.mark.interpret
@every_way
@every_score
@pytest.mark.parametrize("tokens", [2, 3, 127, 129, 256, 257])
def test_sizes(way, tokens, score):
    logits = logits_of(rng(), 2, tokens, "tied")
    for mask_token in (-1, 0, tokens - 1):
        assert_same(way, logits, score=score, mask_token=mask_token)


@pytest.mark.interpret
@every_way
def test_rows_that_are_not_asked_for(way):
    logits = logits_of(rng(), 5, 300)
    rows = torch.tensor([True, False, True, False, False])
    assert_same(way, logits, rows=rows, score="margin")
    assert_same(way, logits, rows=rows, **draws(rng(1), 5))


@pytest.mark.interpret
@every_way
def test_a_temperature_for_each_row(way):
    logits, temperature = logits_of(rng(), 3, 300), torch.tensor([0.1, 1, 9])
    assert_same(way, logits, temperature=temperature, score="neg_entropy")
    assert_same(way, logits, temperature=temperature, **draws(rng(1), 3))


@pytest.mark.interpret
@every_way
@pytest.mark.parametrize("first", [0, 1, 2, 3, 5000])
@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_parts(way, drawn, first):
    """The six numbers, wherever the part begins."""
    logits = logits_of(rng(), 2, 600)
    options = {"temperature": 0.7, "mask_token": first + 99}
    options |= draws(rng(1), 2) if drawn else {}
    with smaller(way):
        got = partial(logits, first_token=first, **options)
    token, _, _, parts = expected(logits, first_token=first, **options)
    np.testing.assert_array_equal(got.token, token)
    np.testing.assert_allclose(got.parts, parts, rtol=2e-5, atol=1e-5)


@pytest.mark.interpret
def test_noise():
    """Of flat logits every key is noise: its bits in order, and its digits at both ends."""
    draw = draws(rng(2), 40)
    drawn = [draw[name].numpy() for name in ("seed", "position", "step")]
    noise = reference.noise(*drawn, np.arange(258))
    got = partial(torch.zeros(40, 258), first_token=0, **draw)
    np.testing.assert_array_equal(got.token, noise.argmax(1))
    np.testing.assert_allclose(got.parts[:, 4], noise.max(1), rtol=1e-6)


@pytest.mark.interpret
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    logits = logits_of(rng(), 3, 300)
    assert_same("pieces", logits, layout, score="neg_entropy")


@pytest.mark.interpret
@every_way
def test_ties_take_the_lowest(way):
    for places in ([511, 512], [128, 129, 599], [255, 256], [0, 599]):
        logits = torch.zeros(1, 600)
        logits[0, places] = 2
        with smaller(way):
            got = confidence(logits, score="margin")
        assert got.token.tolist() == [places[0]]
        assert got.score.tolist() == [0]


@pytest.mark.interpret
@every_way
def test_a_row_has_the_same_bits_whatever_the_others_are(way):
    logits, draw = logits_of(rng(), 3, 600), draws(rng(1), 3)
    with smaller(way):
        together = confidence(logits, **draw)
        alone = confidence(logits[1:2], **{name: x[1:2] for name, x in draw.items()})
    assert_bits(alone, tuple(x[1:2] for x in together))


@pytest.mark.interpret
@every_way
def test_offsets_beyond_32_bits(way):
    """Rows 2**30 elements apart; NumPy's memory costs nothing until it is written."""
    far = torch.from_numpy(np.empty(3 * 2**30 + 300, np.float32))
    logits = far.as_strided((4, 300), (2**30, 1))
    logits.copy_(logits_of(rng(), 4, 300))
    assert_same(way, logits)


@pytest.mark.interpret
def test_no_rows_launch_nothing(monkeypatch):
    from triselect.kernels.token_confidence import triton

    monkeypatch.setattr(triton, "sum_up", None)
    assert confidence(torch.empty(0, 7)).token.shape == (0,)


@pytest.mark.gpu
def test_launches():
    assert launches(token_confidence, torch.randn(3, 8192)) == ["sum_up"]
    assert launches(token_confidence, torch.randn(3, 8200)) == ["sum_up", "merge"]
