"""What must hold of any selection, with no reference in sight."""

import numpy as np
import pytest
import torch

from ..backends import assert_bits
from .cases import every_backend, every_kind, ranges_of, scores_of


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cleaned(scores):
    """As they are compared."""
    return scores.float().nan_to_num(-torch.inf, torch.inf, -torch.inf)


@every_backend
@every_kind
def test_the_best_ones_in_order(backend, kind):
    scores = scores_of(rng(), 3, 500, kind)
    keys = cleaned(scores)
    position = torch.arange(500).expand_as(keys)
    for k in (1, 37, 500):
        index = backend(scores, k).long()
        assert (index.diff() > 0).all()
        assert (index[:, 0] >= 0).all()
        assert (index[:, -1] < 500).all()

        worst = keys.gather(1, index).amin(1, keepdim=True)
        taken = torch.zeros_like(keys, dtype=torch.bool).scatter_(1, index, True)
        assert (keys.masked_fill(taken, -torch.inf) <= worst).all()
        # Of those that tie with the worst, no token before the last one taken is left out.
        tied = keys == worst
        last = position.masked_fill(~(tied & taken), -1).amax(1, keepdim=True)
        assert not (tied & ~taken & (position < last)).any()


@every_backend
@every_kind
@pytest.mark.parametrize("proximity", [1, 9])
def test_select_then_dilate(backend, proximity, kind):
    """Balls around the best tokens, score by score, until there are enough: no pooling at all."""
    tokens, k = 200, 60
    scores = scores_of(rng(), 1, tokens, kind)
    row = cleaned(scores)[0].numpy()
    chosen: set[int] = set()
    for score in np.unique(row)[::-1]:
        ball = {
            other
            for token in np.flatnonzero(row == score)
            for other in range(max(token - proximity, 0), min(token + proximity + 1, tokens))
        }
        chosen |= set(sorted(ball - chosen)[: k - len(chosen)])
    assert backend(scores, k, proximity=proximity).tolist() == [sorted(chosen)]


@every_backend
@pytest.mark.parametrize("proximity", [0, 3])
def test_a_range_is_the_row_cut_there(backend, proximity):
    scores = scores_of(rng(), 40, 90, "few values")
    start, end = ranges_of(rng(1), 40, 90)
    got = backend(scores, 25, proximity=proximity, start=start, end=end)
    for row, a, b, mine in zip(scores, start.tolist(), end.tolist(), got, strict=True):
        cut = backend(row[None, a:b], 25, proximity=proximity)[0]
        assert torch.equal(mine, torch.where(cut >= 0, cut + a, -1))


@every_backend
@pytest.mark.parametrize("beyond", [torch.inf, torch.nan, -torch.inf])
@pytest.mark.parametrize("proximity", [0, 3])
def test_what_is_beyond_the_range_has_no_influence(backend, proximity, beyond):
    scores = scores_of(rng(), 40, 90, "few values")
    start, end = ranges_of(rng(1), 40, 90)
    position = torch.arange(90)
    outside = (position < start[:, None]) | (position >= end[:, None])
    options = {"proximity": proximity, "start": start, "end": end}
    other = scores.masked_fill(outside, beyond)
    assert_bits(backend(other, 25, **options), backend(scores, 25, **options))


@every_backend
@every_kind
def test_rows_do_not_depend_on_their_batch(backend, kind):
    scores = scores_of(rng(), 5, 300, kind)
    start, end = ranges_of(rng(1), 5, 300)
    together = backend(scores, 33, proximity=2, start=start, end=end)
    for b in range(5):
        one = slice(b, b + 1)
        alone = backend(scores[one], 33, proximity=2, start=start[one], end=end[one])
        assert_bits(alone, together[one])


@every_backend
@every_kind
def test_the_same_on_every_run(backend, kind):
    scores = scores_of(rng(), 2, 3000, kind)
    once = backend(scores, 200, proximity=1)
    for _ in range(3):
        assert_bits(backend(scores.clone(), 200, proximity=1), once)


@every_backend
@every_kind
def test_fewer_are_among_more(backend, kind):
    scores = scores_of(rng(), 1, 150, kind)
    more = set(backend(scores, 150)[0].tolist())
    assert more == set(range(150))
    for k in range(149, 0, -7):
        fewer = set(backend(scores, k)[0].tolist())
        assert len(fewer) == k
        assert fewer <= more
        more = fewer


@every_backend
def test_more_than_there_are_takes_all(backend):
    scores = scores_of(rng(), 2, 5)
    assert backend(scores, 8).tolist() == [[0, 1, 2, 3, 4, -1, -1, -1]] * 2


@every_backend
@pytest.mark.parametrize("proximity", [0, 1, 100])
def test_no_tokens(backend, proximity):
    assert backend(torch.empty(3, 0), 2, proximity=proximity).tolist() == [[-1, -1]] * 3


@every_backend
def test_no_rows(backend):
    assert backend(torch.empty(0, 7), 2).shape == (0, 2)


@every_backend
@pytest.mark.parametrize("proximity", [0, 1])
def test_empty_ranges(backend, proximity):
    scores, bound = scores_of(rng(), 3, 9), torch.tensor([0, 4, 9])
    got = backend(scores, 2, proximity=proximity, start=bound, end=bound)
    assert got.tolist() == [[-1, -1]] * 3


@every_backend
@every_kind
def test_within_reach_of_all_every_token_ties(backend, kind):
    scores = scores_of(rng(), 1, 100, kind)
    for proximity in (92, 93, 99, 100, 101, 10**6, 2**31 - 1):
        got = backend(scores, 10, proximity=proximity, start=torch.tensor([7]))
        assert got.tolist() == [list(range(7, 17))]


@every_backend
def test_signs_of_zero_tie(backend):
    scores = torch.tensor([[-0.0, 0.0, -0.0, 0.0, -1e-45, 1e-45]])
    assert backend(scores, 1).tolist() == [[5]]
    assert backend(scores, 3).tolist() == [[0, 1, 5]]
    assert backend(scores, 5).tolist() == [[0, 1, 2, 3, 5]]


@every_backend
def test_nan_ties_with_minus_infinity(backend):
    scores = torch.tensor([[torch.nan, -torch.inf, -3e38, -torch.nan, torch.inf]])
    scores[0, 3] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)  # a NaN with its sign
    assert backend(scores, 2).tolist() == [[2, 4]]
    assert backend(scores, 3).tolist() == [[0, 2, 4]]
    assert backend(scores, 4).tolist() == [[0, 1, 2, 4]]


@every_backend
@pytest.mark.parametrize("k", [1, 50, 299])
def test_distinct_scores_backwards(backend, k):
    scores = torch.from_numpy(rng().permutation(300).astype(np.float32))[None]
    forwards, backwards = backend(scores, k), backend(scores.flip(1), k)
    assert torch.equal(backwards.flip(1), 299 - forwards)


@every_backend
@every_kind
def test_a_larger_scale_changes_nothing(backend, kind):
    scores = scores_of(rng(), 2, 400, kind)
    scores = scores.where(scores.abs() < 1e30, scores.sign() * torch.inf)
    assert_bits(backend(scores * 1024, 50), backend(scores, 50))


@every_backend
def test_inputs_are_left_alone(backend):
    scores = scores_of(rng(), 2, 400, "few values")
    before = scores.clone()
    backend(scores, 50, proximity=2, end=torch.tensor([300, 400]))
    assert_bits(scores, before)
