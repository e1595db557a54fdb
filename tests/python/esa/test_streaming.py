"""However queries and keys come, the same compressor."""

import itertools
from functools import cache

import pytest
import torch

from triselect.esa import calibrate
from triselect.esa.held_out import HeldOut
from triselect.esa.moments import Moments

from .data import SMALL, integers, noise

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st

METHODS = ("closed_form", "centered", "pca")


def same(a, b):
    names = ("query", "key", "query_bias", "key_bias")
    for one, other in ((getattr(a, name), getattr(b, name)) for name in names):
        assert (one is None and other is None) or torch.equal(one, other)
    assert a.curve == b.curve


def cut(x: torch.Tensor, cuts: list[int]) -> list[torch.Tensor]:
    return list(x.tensor_split(sorted(cut % (len(x) + 1) for cut in cuts)))


cuts = st.lists(st.integers(0, 300), max_size=6)


@given(q_cuts=cuts, k_cuts=cuts, method=st.sampled_from(METHODS))
def test_any_chunks_to_the_bit_where_sums_are_exact(q_cuts, k_cuts, method):
    q, k = integers(300)
    got = calibrate(cut(q, q_cuts), iter(cut(k[:211], k_cuts)), dim=4, method=method)
    same(got, at_once(method))


@cache
def at_once(method):
    q, k = integers(300)
    return calibrate(q, k[:211], dim=4, method=method)


@given(cuts)
def test_any_chunks_to_rounding(places):
    rows = noise(300).queries.flatten(1).double()
    once, in_chunks = Moments(rows.shape[1]), Moments(rows.shape[1])
    once.add(rows)
    for chunk in cut(rows, places):
        in_chunks.add(chunk)
    assert in_chunks.count == 300
    for name in ("mean", "second", "covariance"):
        torch.testing.assert_close(
            getattr(in_chunks, name), getattr(once, name), rtol=1e-13, atol=1e-13
        )


def test_moments_are_those_of_the_rows():
    rows = noise(300).queries.flatten(1).double() + 3
    moments = Moments(rows.shape[1])
    moments.add(rows)
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.covariance, torch.cov(rows.T, correction=0))
    torch.testing.assert_close(moments.second, torch.einsum("ti,tj->ij", rows, rows) / 300)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_tokens_does_not_matter(method):
    q, k = integers(300)
    same(
        calibrate(q.flip(0), k[torch.randperm(300)], dim=4, method=method),
        calibrate(q, k, dim=4, method=method),
    )


@pytest.mark.parametrize("places", [[64, 128], [1, 63, 65, 200], list(range(1, 300, 7))])
def test_what_is_held_out_does_not_depend_on_the_chunks(places):
    q, k = integers(300)
    same(
        calibrate(cut(q, places), cut(k, [150]), recall=0.5, top_k=5),
        calibrate(q, k, recall=0.5, top_k=5),
    )


def test_long_chunks_are_taken_in_parts(monkeypatch):
    q, k = integers(300)
    once = calibrate(q, k, dim=4)
    monkeypatch.setattr("triselect.esa.layout.TOKENS_AT_ONCE", 7)
    same(calibrate(q, k, dim=4), once)


@pytest.mark.parametrize("method", [*METHODS, "gradient"])
def test_one_pass_over_one_generator(method):
    """Queries and keys of one forward pass: neither stream runs ahead of the other."""
    ahead = []

    def passes():
        for seed in range(5):
            ahead.append(seed - taken[0])
            yield integers(64, seed=seed)

    taken = [0]

    def keys(source):
        for taken[0], pair in enumerate(source, 1):
            yield pair.keys

    first, second = itertools.tee(passes())
    got = calibrate((pair.queries for pair in first), keys(second), dim=3, method=method)
    assert taken[0] == 5
    assert max(ahead) == 0
    whole = [
        torch.cat(part) for part in zip(*(integers(64, seed=s) for s in range(5)), strict=True)
    ]
    same(got, calibrate(*whole, dim=3, method=method))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    """Small integers are the same in all of them."""
    q, k = integers(100)
    got = calibrate(q.to(dtype), k.to(dtype), dim=4)
    assert got.query.dtype == torch.float32
    same(got, calibrate(q, k, dim=4))


def test_strides():
    q, k = integers(100)
    swapped = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k))
    same(calibrate(*swapped, dim=4), calibrate(q, k, dim=4))


def test_no_gradient_is_recorded():
    q, k = integers(100)
    assert not calibrate(q.requires_grad_(), k, dim=4).query.requires_grad


@given(
    total=st.integers(0, 200),
    block=st.integers(1, 9),
    most=st.integers(1, 6),
    seed=st.integers(0, 9),
    places=cuts,
)
def test_every_row_is_held_out_or_passed_on(total, block, most, seed, places):
    held = HeldOut(block, most, seed)
    rows = torch.arange(total)[:, None].double()
    passed = [held.add(chunk) for chunk in cut(rows, places)]
    kept = [row for piece in held.held_out() for row in piece.flatten().tolist()]
    assert kept == sorted(kept)
    assert len(kept) <= block * most
    assert len(kept) % block == 0
    blocks = [int(row) // block for row in kept[::block]]
    assert len({number // 4 for number in blocks}) == len(blocks)
    assert kept == [row for number in blocks for row in range(number * block, (number + 1) * block)]
    assert bool(kept) >= (total >= 4 * block)
    rest = torch.cat([*passed, *held.unfinished()]).flatten().tolist()
    assert sorted(rest + kept) == list(range(total))


def test_what_is_held_out_is_spread_evenly():
    """Blocks of a long stream, early and late: 16 of 100, drawn 200 times."""
    counts = torch.zeros(100)
    for seed in range(200):
        held = HeldOut(1, 16, seed)
        held.add(torch.arange(100)[:, None])
        counts[torch.cat(held.held_out()).flatten()] += 1
    assert counts.sum() == 16 * 200
    quarters = counts.view(4, 25).sum(1)
    assert quarters.min() > 700  # 800 expected, standard deviation 23
    assert counts.min() > 5  # 32 expected


def test_layout_is_kept():
    c = calibrate(*noise(20), dim=3)
    assert c.layout == SMALL
