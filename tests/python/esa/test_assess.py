"""`assess` against scores, sets and softmax spelt out, and with keys of fewer bits."""

import re
from dataclasses import replace

import pytest
import torch

from triselect.esa import Assessment, Compressor, assess, calibrate, synthetic

from .data import EVEN, SMALL, integers, noise, scores, short_scores


def by_hand(c, queries, keys, top_k, chunk, scale) -> Assessment:
    f, g = scores(queries, keys), short_scores(c, queries, keys)
    shared = queries.shape[1] // keys.shape[1]
    recall, kept, exact_kept = [], [], []
    for first in range(0, len(queries), chunk):
        rows = range(first, min(first + chunk, len(queries)))
        total, short = ((x - x.amax(1, keepdim=True))[list(rows)].amax(0).tolist() for x in (f, g))
        best, chosen = (
            sorted(range(len(keys)), key=lambda m, x=x: (-x[m], m))[:top_k] for x in (total, short)
        )
        recall.append(sum(total[m] >= total[best[-1]] for m in chosen) / len(best))
        for row in rows:
            for share, tokens in ((kept, chosen), (exact_kept, best)):
                share.append([])
                for head in range(queries.shape[1]):
                    weight = (
                        keys[:, head // shared].double() @ queries[row, head].double()
                    ) * scale
                    weight = (weight - weight.max()).exp()
                    share[-1].append(float(weight[tokens].sum() / weight.sum()))
    kept, exact_kept = torch.tensor(kept).mean(0), torch.tensor(exact_kept).mean(0)
    recall = sum(recall) / len(recall)
    return Assessment(
        *(float(x) for x in (recall, kept.mean(), kept.min(), exact_kept.mean(), exact_kept.min()))
    )


@pytest.mark.parametrize("method", ["closed_form", "centered", "gradient"])
@pytest.mark.parametrize(("chunk", "top_k"), [(1, 7), (4, 7), (6, 3), (100, 20)])
def test_by_hand(chunk, top_k, method):
    """Ten queries: the last chunk of 4 has two, that of 6 has four."""
    q, k = noise(50)
    c = calibrate(q, k, dim=3, method=method)
    q = q[:10]
    wanted = by_hand(c, q, k, top_k, chunk, SMALL.head_dim**-0.5)
    assert wanted.recall < 1
    assert assess(c, q, k, top_k=top_k, chunk=chunk) == pytest.approx(wanted, abs=1e-6)
    wanted = by_hand(c, q, k, top_k, chunk, 0.7)
    assert assess(c, q, k, top_k=top_k, chunk=chunk, scale=0.7) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_few_products_at_a_time(chunk, monkeypatch):
    q, k = noise(50)
    c = calibrate(q, k, dim=3)
    whole = assess(c, q, k, top_k=5, chunk=chunk)
    monkeypatch.setattr("triselect.esa.recall.PRODUCTS", 1)
    assert assess(c, q, k, top_k=5, chunk=chunk) == pytest.approx(whole, abs=1e-6)


def identity(layout) -> Compressor:
    eye = torch.eye(layout.width)
    return Compressor(eye, eye, *layout)


@pytest.mark.parametrize("chunk", [1, 8])
def test_of_equal_scores_any_will_do(chunk):
    """Eight tokens each differ where no query looks, and a bias prefers the first or the last."""
    q, k = integers(40)
    k = k[:5].repeat(8, 1, 1)
    q[:, :, 0], k[:, :, 0] = 0, torch.arange(40.0)[:, None]
    bias = torch.eye(10)[0] * 1e-3
    for sign in (1, 0, -1):
        c = replace(identity(SMALL), query_bias=sign * bias)
        assert assess(c, q, k, top_k=11, chunk=chunk).recall == 1


def test_what_is_not_kept_is_the_total_variation():
    q, k = noise(60)
    c = calibrate(q, k, dim=2)
    got = assess(c, q[:1], k, top_k=9)
    f, g = scores(q[:1], k)[0], short_scores(c, q[:1], k)[0]
    distances = []
    for order in (g, f):
        chosen = torch.zeros(60, dtype=torch.bool)
        chosen[order.topk(9).indices] = True
        distance = []
        for head in range(6):
            logits = k[:, head // 3].double() @ q[0, head].double() / 5**0.5
            dense = logits.softmax(0)
            sparse = logits.masked_fill(~chosen, -torch.inf).softmax(0)
            distance.append((dense - sparse).abs().sum().item() / 2)
        distances.append(distance)
    for mean, worst, distance in ((*got[1:3], distances[0]), (*got[3:], distances[1])):
        assert 1 - mean == pytest.approx(sum(distance) / 6)
        assert 1 - worst == pytest.approx(max(distance))


def test_all_tokens():
    q, k = noise(20)
    c = calibrate(q, k, dim=1)
    for top_k in (20, 21, 10**6):
        assert assess(c, q, k, top_k=top_k) == pytest.approx((1,) * 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_of_other_dtypes(dtype):
    q, k = integers(40)
    c = calibrate(q, k, dim=4)
    wanted = assess(c, q, k, top_k=5)
    assert assess(c, q.to(dtype), k.to(dtype), top_k=5) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("dtype", "loss"),
    [
        (torch.float16, 0.005),
        (torch.bfloat16, 0.01),
        (torch.int8, 0.01),
        (torch.float8_e4m3fn, 0.03),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["misaligned", "outlier_channels", "needles"])
def test_fewer_bits_cost_little(name, dtype, loss):
    q, k = synthetic.DISTRIBUTIONS[name](2600, EVEN, 0)
    c = calibrate(q, k, dim=16, method="centered")
    q = q[2048:2304]
    full = assess(c, q, k, top_k=160)
    less = assess(c, q, k, top_k=160, key_dtype=dtype)
    assert less.recall > full.recall - loss
    assert less.recall != full.recall  # it is another computation
    assert less.kept_mass > full.kept_mass - 0.01


def test_eight_bits_are_those_of_the_contract():
    """One coarse key: 1.0 and 127.4 / 127 round to the same int8, and the first wins."""
    one = SMALL._replace(heads=1, groups=1, head_dim=2)
    c = identity(one)
    k = torch.tensor([[[127.0, 1.0]], [[127.0, 1.4]]])
    q = torch.tensor([[[0.0, 1.0]]])
    assert assess(c, q, k, top_k=1).recall == 1
    assert assess(c, q, k, top_k=1, key_dtype=torch.int8).recall == 0
    assert assess(c, q, k.flip(0), top_k=1, key_dtype=torch.int8).recall == 1


Q, K = noise(20)


@pytest.mark.parametrize(
    ("queries", "keys", "options", "error", "message"),
    [
        (Q, K, {"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        (Q, K, {"top_k": 1.5}, TypeError, "top_k must be an int, got float"),
        (Q, K, {"chunk": 0}, ValueError, "chunk must be at least 1, got 0"),
        (Q[:0], K, {}, ValueError, "queries must have at least one token, got none"),
        (Q, K[:0], {}, ValueError, "keys must have at least one token, got none"),
        (Q[0], K, {}, ValueError, "queries must be (tokens, heads, dim), got shape (6, 5)"),
        (Q, [K], {}, TypeError, "keys must be tensors, got list"),
        (Q, K * torch.inf, {}, ValueError, "keys must be finite"),
        (Q[:, :4], K, {}, ValueError, "is for Layout(heads=6, groups=2, head_dim=5), queries"),
        (Q[:, :4], K, {}, ValueError, "are Layout(heads=4, groups=2, head_dim=5)"),
        (Q, K, {"key_dtype": torch.int16}, TypeError, "dtype must be a float of up to 32 bits"),
    ],
)
def test_bad_input_is_named(queries, keys, options, error, message):
    c = calibrate(Q, K, dim=3)
    with pytest.raises(error, match=re.escape(message)):
        assess(c, queries, keys, **{"top_k": 3} | options)
