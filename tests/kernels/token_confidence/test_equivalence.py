"""Every backend is as sure of the same token as the reference: sizes, kinds of logits, layouts."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from triselect.kernels.token_confidence import reference

from triselect.ops import merge_confidence, partial_confidence

from ..backends import LAYOUTS, every_dtype
from .cases import (
    assert_confident_as_the_reference,
    draws,
    every_backend,
    every_kind,
    every_partial,
    every_score,
    expected,
    logits_of,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@every_backend
@every_dtype
@every_kind
@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_kinds(backend, drawn, kind, dtype):
    logits = logits_of(rng(), 3, 1100, kind, dtype)
    for score in ("margin", "neg_entropy"):
        options = {"score": score, "temperature": 0.8} | (draws(rng(1), 3) if drawn else {})
        got = backend(logits, **options)
        assert_confident_as_the_reference(got, logits, **options)


@every_backend
@every_score
@pytest.mark.parametrize("tokens", [*range(2, 20), 31, 33, 63, 64, 65, 300, 511, 512, 513, 1000])
def test_sizes(backend, tokens, score):
    """All vectors and their tails; the mask token anywhere or nowhere."""
    logits = logits_of(rng(), 4, tokens, "tied")
    for mask_token in (-1, 0, tokens // 2, tokens - 1, tokens):
        for options in ({}, draws(rng(1), 4)):
            options = {"score": score, "mask_token": mask_token, **options}
            assert_confident_as_the_reference(backend(logits, **options), logits, **options)


@every_backend
@pytest.mark.parametrize("tokens", [8192, 8193, 32000, 16 * 8192 + 1, 152064])
def test_vocabularies(backend, tokens):
    """In one piece and in many, with the best token at every end of a piece."""
    logits = logits_of(rng(), 6, tokens, dtype=torch.bfloat16)
    for r, token in enumerate((0, tokens - 1, tokens // 2, 8191 % tokens, 8192 % tokens)):
        logits[r, token] = 25
    for options in (
        {"mask_token": 0, "score": "neg_entropy"},
        {"score": "margin"},
        draws(rng(1), 6),
    ):
        got = backend(logits, **options)
        assert_confident_as_the_reference(got, logits, **options)


@every_backend
@pytest.mark.parametrize("temperature", [1e-6, 0.01, 0.7, 3, 50.0, 1e6])
def test_temperatures(backend, temperature):
    logits = logits_of(rng(), 4, 900, dtype=torch.bfloat16)
    for score in ("max_prob", "margin", "neg_entropy"):
        got = backend(logits, temperature=temperature, score=score)
        assert_confident_as_the_reference(got, logits, temperature=temperature, score=score)


@every_backend
@pytest.mark.parametrize("tokens", [900, 20000])
def test_a_temperature_for_each_row(backend, tokens):
    logits = logits_of(rng(), 4, tokens, dtype=torch.bfloat16)
    temperature = torch.tensor([1e-6, 9, 0.3, 9, 1, 9, 1e6, 9])[::2]
    for options in ({"score": "neg_entropy"}, draws(rng(1), 4)):
        got = backend(logits, temperature=temperature, **options)
        assert_confident_as_the_reference(got, logits, temperature=temperature, **options)


@every_backend
def test_a_temperature_makes_no_ties(backend):
    """Logits that differ in their last bit alone, and would not after division."""
    logits = torch.ones(1, 9000)
    logits[0, 8500] = 1 + 2.0**-23
    for temperature in (0.3, 0.7, 3.0, 7.0):
        assert backend(logits, temperature=temperature).token.tolist() == [8500]


@every_backend
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout, dtype):
    logits = logits_of(rng(), 5, 700, "normal", dtype)
    options = {"score": "neg_entropy", "rows": torch.tensor([True, False, True, True, False])}
    got = backend(logits, layout=layout, **options)
    assert_confident_as_the_reference(got, LAYOUTS[layout](logits).contiguous(), **options)


@every_backend
def test_numbers_per_row_of_any_strides(backend):
    logits, drawn = logits_of(rng(), 5, 60), draws(rng(1), 10)
    drawn = {name: value[::2] for name, value in drawn.items()}
    rows = torch.arange(10)[::2] % 4 == 0
    got = backend(logits, rows=rows, **drawn)
    assert_confident_as_the_reference(got, logits, rows=rows, **drawn)


@every_backend
def test_rows_far_apart(backend):
    """2**30 numbers, so that offsets take more than 32 bits; nothing else of them is touched."""
    if backend.device != "cpu":
        pytest.skip("a device would give it memory")
    far = torch.from_numpy(np.empty(3 * 2**30 + 40, np.float32))
    logits = far.as_strided((4, 40), (2**30, 1))
    logits.copy_(logits_of(rng(), 4, 40))
    assert_confident_as_the_reference(backend(logits), logits)


def test_the_random_bits_are_philox():
    """The known answers of Random123 (Salmon et al. 2011), kat_vectors."""
    one = 0xFFFFFFFF
    for counter, key, answer in (
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((one,) * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ):
        words = reference.philox(counter, np.uint64(key))
        assert " ".join(f"{int(word):08x}" for word in words) == answer


@every_partial
@pytest.mark.parametrize("first", [0, 1, 2, 3, 5000, 2**31 - 600])
@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_parts(backend, drawn, first):
    """The six numbers, wherever the part begins."""
    logits = logits_of(rng(), 4, 600)
    draw = draws(rng(1), 4) if drawn else {}
    options = {"temperature": 0.7, "mask_token": min(first + 99, 2**31 - 1), **draw}
    got = backend(logits, first_token=first, **options)
    token, _, _, parts = expected(logits, first_token=first, **options)
    np.testing.assert_array_equal(got.token, token)
    np.testing.assert_allclose(got.parts, parts, rtol=2e-5, atol=1e-5)


@every_partial
@every_score
@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
@pytest.mark.parametrize("kind", ["normal", "tied", "some -inf", "some nan", "nothing but -inf"])
def test_any_split_in_any_grouping(backend, kind, drawn, score):
    """The same token exactly, and the same numbers up to rounding."""
    from triselect.kernels.token_confidence import eager

    draw = draws(rng(1), 3) if drawn else {}
    logits = logits_of(rng(), 3, 1000, kind)
    options = {"temperature": 0.3, "mask_token": 77, **draw}
    whole = merge_confidence([backend(logits, first_token=0, **options)], score=score)
    for seed in range(4):
        cuts = np.sort(2 * rng(seed).choice(np.arange(1, 499), 5, replace=False)) + seed % 2
        bounds = [0, *cuts.tolist(), 1000]
        parts = [backend(logits[:, a:b], first_token=a, **options) for a, b in pairwise(bounds)]
        rng(seed).shuffle(parts)
        found = merge_confidence(parts, score=score)
        assert torch.equal(found.token, whole.token)
        torch.testing.assert_close(found[1:], whole[1:], rtol=1e-4, atol=1e-5)
        while len(parts) > 1:  # neighbours in pairs: a tree
            pairs = zip(parts[::2], parts[1::2], strict=False)
            parts = [eager.merge(*a, *b) for a, b in pairs] + parts[len(parts) // 2 * 2 :]
        assert torch.equal(parts[0][0], whole.token)
        tree = eager.finish(parts[0][1], score)
        torch.testing.assert_close(tree, tuple(whole[1:]), rtol=1e-4, atol=1e-5)


def test_merging_is_the_reference():
    logits = logits_of(rng(), 8, 200)
    parts = [partial_confidence(logits[:, a : a + 100], first_token=a) for a in (0, 100)]
    by_reference = [expected(logits[:, a : a + 100], first_token=a) for a in (0, 100)]
    token, numbers = reference.merge(*(x for found in by_reference for x in (found[0], found[3])))
    for score in ("max_prob", "margin", "neg_entropy"):
        got = merge_confidence(parts, score=score)
        np.testing.assert_array_equal(got.token, token)
        for mine, theirs in zip(got[1:], reference.finish(numbers, score), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
