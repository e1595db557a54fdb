"""Sizes, recall targets, seeds and errors of `calibrate`."""

import doctest
import importlib
import re

import pytest
import torch

from triselect.esa import assess, calibrate, synthetic
from triselect.esa.factors import Factors
from triselect.esa.layout import fold
from triselect.esa.recall import Curve, curve

from .data import EVEN, SMALL, error, integers, noise, scores


@pytest.mark.parametrize("module", ["assess", "calibrate", "compressor"])
def test_the_examples_run(module):
    results = doctest.testmod(importlib.import_module(f"triselect.esa.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


def test_sizes():
    q, k = noise(30)
    assert calibrate(q, k).dim == SMALL.width  # all, where that is less than 128
    assert calibrate(q, k, dim=3).dim == 3
    wide = SMALL._replace(head_dim=100)
    assert calibrate(*noise(30, wide)).dim == 128
    assert calibrate(*noise(30, wide), dim=200).dim == 200


def test_the_rows_of_a_smaller_one_come_first():
    q, k = noise(100)
    large, small = calibrate(q, k), calibrate(q, k, dim=3)
    assert torch.equal(large.query[:3], small.query)
    assert torch.equal(large.key[:3], small.key)


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize("method", ["closed_form", "centered", "pca"])
def test_recall_that_is_asked_for_is_reached(method, chunk):
    q, k = synthetic.misaligned(6000, EVEN, 0)
    c = calibrate(q[:3840], k[:3840], recall=0.9, method=method, chunk=chunk)
    measured = c.curve
    assert measured.top_k == measured.keys // 16
    assert (measured.chunk, measured.keys) == (chunk, 960)  # 15 blocks of 64
    assert measured.dim == tuple(range(1, 65))
    recall = dict(zip(measured.dim, measured.recall, strict=True))
    assert recall[c.dim] >= 0.9
    assert recall[c.dim - 1] < 0.9
    assert recall[64] > 0.999
    # Tokens that neither the moments nor the choice of the size have seen, as selective.
    fresh = assess(c, q[4000:4420], k[4000:4960], top_k=60, chunk=chunk)
    assert fresh.recall == pytest.approx(recall[c.dim], abs=0.03)


def test_a_larger_share_needs_a_larger_size():
    q, k = synthetic.misaligned(3000, EVEN, 1)
    sizes = [calibrate(q, k, recall=target).dim for target in (0.6, 0.8, 0.95)]
    assert sizes == sorted(set(sizes))


def test_what_is_held_out_is_not_calibrated_on():
    """In each block of 64 another dimension: what no moment holds is not found."""
    k = torch.zeros(1024, 1, 16)
    for i, block in enumerate(k.view(16, 64, 16)):
        block[:, i] = torch.linspace(1, 2, 64)
    c = calibrate(torch.ones(1024, 1, 16), k, recall=1e-9, top_k=64)
    assert c.curve.recall[-1] < 0.5


@pytest.mark.parametrize("seed", range(8))
def test_a_last_block_cut_short_is_calibrated_on(seed):
    """By far the largest channel is in the last 40 tokens alone, which some seeds would draw."""
    q, k = noise(256 + 40, seed=seed)
    q[256:], k[256:] = 0, 0
    q[:256, :, 3], k[:256, :, 3] = 0, 0
    q[256:, 0, 3] = k[256:, 0, 3] = 1000
    c = calibrate(q, k, recall=0.5, top_k=5, seed=seed)
    assert c.query[0, 3].abs() > 100 * c.query[0, :3].abs().max()
    assert c.key[0, 3].abs() > 100 * c.key[0, :3].abs().max()


def test_one_dimension_is_enough_where_there_is_one():
    q, k = (torch.rand(300, 1, 1) * torch.rand(8) for _ in range(2))
    assert calibrate(q, k, recall=0.99).dim == 1


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_curve_by_hand(chunk):
    """Maps that only drop channels, scores that are whole numbers, sets of tokens spelt out."""
    q, k = integers(10), integers(40, seed=1)
    q, k = fold(q.queries, 2), fold(k.keys, 2)
    eye = torch.eye(10, dtype=torch.float64)
    got = curve(Factors(eye, eye), q, k, 6, chunk)
    recall = []
    for size in range(1, 11):
        share = []
        for first in range(0, 10, chunk):
            f, g = (q[first : first + chunk, :n] @ k[:, :n].T for n in (10, size))
            f, g = ((x - x.amax(1, keepdim=True)).amax(0).tolist() for x in (f, g))
            chosen = sorted(range(40), key=lambda m, g=g: (-g[m], m))[:6]
            share.append(sum(f[m] >= sorted(f)[-6] for m in chosen) / 6)
        recall.append(sum(share) / len(share))
    assert got == Curve(tuple(range(1, 11)), pytest.approx(tuple(recall)), 6, chunk, 10, 40)
    assert got.recall[-1] == 1


def test_curve_of_many_sizes_and_pieces(monkeypatch):
    q, k = torch.randn(2, 20, 150, dtype=torch.float64)
    eye = torch.eye(150, dtype=torch.float64)
    whole = curve(Factors(eye, eye), q, k, 3, 4)
    assert whole.dim == (*range(3, 150, 3), 150)
    monkeypatch.setattr("triselect.esa.recall.PRODUCTS", 1)
    assert curve(Factors(eye, eye), q, k, 3, 4) == whole


def test_the_smallest_size_is_that_from_which_on_the_target_is_kept():
    measured = Curve((1, 2, 3, 4), (0.8, 0.95, 0.9, 1.0), 1, 1, 1, 1)
    assert [measured.smallest(target) for target in (0.8, 0.85, 0.92, 0.99)] == [1, 2, 4, 4]
    with pytest.raises(ValueError, match=r"recall 0\.9 is reached at no size"):
        Curve((1, 2), (0.5, 0.8), 1, 1, 1, 1).smallest(0.9)


@pytest.mark.parametrize("options", [{"method": "gradient", "dim": 3}, {"recall": 0.5, "top_k": 9}])
def test_the_same_seed_gives_the_same(options):
    q, k = noise(600)
    one, two, other = (calibrate(q, k, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(one.query, two.query)
    assert torch.equal(one.key, two.key)
    assert one.curve == two.curve
    assert one.query.shape != other.query.shape or not torch.equal(one.query, other.query)


def test_the_state_of_the_generators_is_left_alone():
    q, k = noise(300)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    calibrate(q, k, dim=3, method="gradient")
    calibrate(q, k, recall=0.5, top_k=9)
    assert torch.equal(torch.get_rng_state(), before)


def test_gradient_learns():
    q, k = noise(20_000)
    c = calibrate(q, k, dim=SMALL.width, method="gradient")
    assert c.query_bias is not None
    assert c.key_bias is not None
    q, k = noise(500, seed=1)
    assert error(c, q, k) < 0.2 * scores(q, k).square().sum().item()


@pytest.mark.parametrize("rank", [2, 5])
def test_gradient_arrives_at_the_closed_form(rank, monkeypatch):
    """With a larger step and more epochs than the paper's; the biases may gain a little."""
    monkeypatch.setattr("triselect.esa.gradient.LEARNING_RATE", 5e-3)
    monkeypatch.setattr("triselect.esa.gradient.EPOCHS", 60)
    q, k = noise(2000)
    best = error(calibrate(q, k, dim=rank), q, k)
    trained = error(calibrate(q, k, dim=rank, method="gradient"), q, k)
    assert 0.99 * best < trained < 1.05 * best


def test_gradient_reads_all_of_the_longer_and_of_the_shorter():
    """A batch for every 128 of the longer; the shorter comes as often as needed."""
    q, k = noise(20_000)
    k = k[:50]
    for queries, keys in ((q, k), (q[:50], torch.cat([k] * 400))):
        c = calibrate(queries, keys, dim=SMALL.width, method="gradient")
        wanted = scores(queries[:500], k)
        assert error(c, queries[:500], k) < 0.2 * wanted.square().sum().item()
    for queries, keys in ((q[:1], k), (q[:129], k[:1]), (q[:1], k[:1])):
        assert calibrate(queries, keys, dim=2, method="gradient").query.isfinite().all()


Q, K = torch.ones(4, 6, 5), torch.ones(4, 2, 5)


@pytest.mark.parametrize(
    ("queries", "keys", "options", "error", "message"),
    [
        (
            Q,
            K,
            {"dim": 11},
            ValueError,
            "dim must be at most groups * head_dim = 2 * 5 = 10, got 11",
        ),
        (Q, K, {"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        (Q, K, {"dim": 2.0}, TypeError, "dim must be an int, got float"),
        (Q, K, {"method": "svd"}, ValueError, "method must be one of closed_form, centered, pca"),
        (Q, K, {"chunk": 0}, ValueError, "chunk must be at least 1, got 0"),
        (Q, K, {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        (Q, K, {"recall": 1.0}, ValueError, "recall must be between 0 and 1, both excluded, got 1"),
        (Q, K, {"recall": 0}, ValueError, "recall must be between 0 and 1, both excluded, got 0"),
        (Q, K, {"recall": torch.nan}, ValueError, "recall must be between 0 and 1"),
        (Q, K, {"recall": "0.9"}, TypeError, "recall must be a float, got str"),
        (Q, K, {"recall": 0.9, "dim": 3}, ValueError, "dim and recall exclude each other"),
        (Q, K, {"recall": 0.9, "method": "gradient"}, ValueError, "recall needs maps"),
        (Q, K, {"recall": 0.9, "top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        (Q, K, {"recall": 0.9}, ValueError, "queries must have at least 256 tokens, so that some"),
        (
            Q.repeat(64, 1, 1),
            K,
            {"recall": 0.9},
            ValueError,
            "keys must have at least 256 tokens, so that some can be held out",
        ),
        (
            Q.repeat(64, 1, 1),
            K,
            {"recall": 0.9, "chunk": 100},
            ValueError,
            "queries must have at least 400 tokens",
        ),
        (
            Q.repeat(64, 1, 1),
            K.repeat(64, 1, 1),
            {"recall": 0.9, "top_k": 64},
            ValueError,
            "top_k must be less than the 64 keys held out, got 64",
        ),
        (Q, [], {}, ValueError, "keys must have at least one chunk, got none"),
        ([], K, {}, ValueError, "queries must have at least one chunk, got none"),
        (
            Q[:0],
            K,
            {},
            ValueError,
            "queries must have at least one token to calibrate on, got none",
        ),
        (Q, K[:0], {}, ValueError, "keys must have at least one token to calibrate on, got none"),
        (Q, K[:0], {"method": "gradient"}, ValueError, "keys must have at least one token"),
        (Q[0], K, {}, ValueError, "queries must be (tokens, heads, dim), got shape (6, 5)"),
        (Q, K[None], {}, ValueError, "keys must be (tokens, heads, dim), got shape (1, 4, 2, 5)"),
        (Q.long(), K, {}, TypeError, "queries must be floating point, got torch.int64"),
        (Q, [K.numpy()], {}, TypeError, "keys must be tensors, got ndarray"),
        (
            Q,
            K[:, :, :4],
            {},
            ValueError,
            "heads of one size of at least 1, got (4, 6, 5) and (4, 2, 4)",
        ),
        (Q[:, :5], K, {}, ValueError, "the 2 heads of keys (4, 2, 5) must divide the 5 of queries"),
        (Q[:, :0], K, {}, ValueError, "must divide the 0 of queries"),
        (Q, K[:, :0], {}, ValueError, "the 0 heads of keys"),
        (Q[:, :, :0], K[:, :, :0], {}, ValueError, "must have heads of one size of at least 1"),
        ([Q, Q[:, :4]], K, {}, ValueError, "queries must be (tokens, 6, 5) in every chunk"),
        (Q, [K, K[:, :, :4]], {}, ValueError, "keys must be (tokens, 2, 5) in every chunk"),
        (Q * torch.nan, K, {}, ValueError, "queries must be finite, got NaN or infinity"),
        (Q, [K, K / 0], {}, ValueError, "keys must be finite, got NaN or infinity"),
    ],
)
def test_bad_input_is_named(queries, keys, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        calibrate(queries, keys, **options)


def test_a_size_too_large_is_found_at_once():
    def chunks():
        yield K
        raise AssertionError("read on")

    with pytest.raises(ValueError, match="dim must be at most"):
        calibrate(Q, chunks(), dim=11)
