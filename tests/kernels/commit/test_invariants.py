"""What holds of a round behind the model, whatever the backend."""

import itertools

import numpy as np
import pytest
import torch

from ..backends import assert_bits, flat
from ..spawn.cases import MASK, every_kind
from .cases import a_round, every_backend, every_rule, run


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


BRANCHES = ("branch", "is_open", "extra", "new_token", "new_prob", "new_score")


@every_backend
@every_rule
@every_kind
def test_the_winner_is_worth_most(backend, kind, rule):
    given = a_round(rng(), 40, kind=kind, rule=rule, k=4)
    got = run(backend, given)
    most = got.worth.gather(1, got.winner[:, None].long())[:, 0]
    assert (most[:, None] >= got.worth).all()
    first = (got.worth == most[:, None]).int().argmax(1)
    assert torch.equal(first.int(), got.winner)
    extra = given.extra.gather(1, got.winner[:, None].long())[:, 0]
    assert ((got.winner == 0) | (extra >= 0)).all()


@every_backend
@every_rule
@pytest.mark.parametrize("released", [False, True])
def test_a_branch_that_was_not_spawned_never_wins(backend, released, rule):
    """Though all are worth nothing, and it would come first."""
    given = a_round(rng(), 20, kind="nothing finite", rule=rule, released=released, unfilled=1)
    given.extra[:, :3] = -1
    got = run(backend, given)
    assert ((got.winner == 0) | (got.winner == 3)).all()
    assert (got.worth[:, 1:3] == -torch.inf).all()


@every_backend
def test_the_anchor_is_first_among_equals_and_last_as_released(backend):
    given = a_round(rng(), 20, kind="all equal", spawned=1, unfilled=1)
    assert (run(backend, given).winner == 0).all()
    assert (run(backend, given.but(released=True)).winner == 1).all()


@every_backend
@every_rule
def test_the_order_of_lookaheads_changes_nothing(backend, rule):
    """Where no two are worth the same."""
    given = a_round(rng(), 30, kind="distinct", rule=rule, k=3, spawned=1)
    once = run(backend, given)
    if rule == "count":  # whole numbers: few batches have four different ones
        given = given.but(worth=once.worth + given.extra * 1e-3)
        once = run(backend, given)
    distinct = once.worth.sort(1).values.diff(dim=1).min(1).values > 0
    assert distinct.sum() > 5
    for order in itertools.permutations((1, 2, 3)):
        places = torch.tensor([0, *order])
        moved = {name: getattr(given, name)[:, places] for name in BRANCHES}
        again = given._replace(**moved)
        if given.options["worth"] is not None:
            again = again.but(worth=given.options["worth"][:, places])
        got = run(backend, again)
        assert torch.equal(places[got.winner][distinct].int(), once.winner[distinct])
        assert_bits(got.worth[distinct], once.worth[:, places][distinct])
        for mine, theirs in zip(flat(got[:3]), flat(once[:3]), strict=True):
            assert_bits(mine[distinct], theirs[distinct])


@every_backend
@every_rule
def test_no_lookaheads_is_the_anchor(backend, rule):
    given = a_round(rng(), 20, rule=rule)
    alone = given._replace(**{name: getattr(given, name)[:, :1] for name in BRANCHES})
    none = given._replace(extra=torch.full_like(given.extra, -1))
    one, other = run(backend, alone), run(backend, none)
    assert (other.winner == 0).all()
    assert_bits(one[:4], other[:4])
    assert_bits(one.worth[:, 0].clone(), other.worth[:, 0].clone())


@every_backend
@every_kind
def test_sequences_do_not_influence_each_other(backend, kind):
    given = a_round(rng(), 6, kind=kind, rule="lowest", worth=None)
    together = run(backend, given)
    for b in range(6):
        one = slice(b, b + 1)
        assert_bits(run(backend, given.of(one)), tuple(x[one].clone() for x in flat(together)))


@every_backend
@every_rule
def test_what_is_not_open_is_not_read(backend, rule):
    """Nor what was predicted for branches that there are not."""
    given = a_round(rng(), 20, rule=rule)
    live = (given.extra >= 0) | (torch.arange(4) == 0)
    read = given.is_open & live[..., None]
    expected = run(backend, given)
    new_prob, new_score = given.new_prob.clone(), given.new_score.clone()
    new_prob[~read] = new_score[~read] = torch.nan
    assert_bits(run(backend, given._replace(new_prob=new_prob, new_score=new_score)), expected)


@every_backend
def test_only_the_window_changes(backend):
    given = a_round(rng(), 20, 30, 7)
    got = run(backend, given)
    place = torch.arange(30)
    outside = (place < given.start[:, None]) | (place >= given.start[:, None] + 7)
    for mine, theirs in zip(flat(got[:4]), given[:6], strict=True):
        assert_bits(mine[outside], theirs[outside])


@every_backend
def test_what_was_filled_when_and_by_whom(backend):
    given = a_round(rng(), 40, 30, 20, k=5)
    got = run(backend, given)
    filled = got.tokens != given.tokens
    assert torch.equal(got.filled_at, given.step[:, None].where(filled, given.filled_at))
    own = given.extra.gather(1, got.winner[:, None].long()) == torch.arange(30)
    by = torch.where(own & (got.winner[:, None] > 0), got.winner[:, None], 0)
    assert torch.equal(got.filled_by, by.where(filled, given.filled_by))
    assert (filled & own).any()


@every_backend
@pytest.mark.parametrize("shift", [False, True])
def test_nothing_open_leaves_the_tokens(backend, shift):
    """A finished sequence is what it was, whatever the model says."""
    given = a_round(rng(), 10, shift=shift, nothing_open=True, spawned=0)
    place = given.start[:, None].long() + torch.arange(12)
    window = torch.nn.functional.pad(given.tokens, (0, 12), value=MASK).gather(1, place)
    given = given._replace(branch=window[:, None].repeat(1, 4, 1))
    got = run(backend, given)
    assert_bits(got.tokens, given.tokens)
    assert_bits((got.filled_at, got.filled_by), (given.filled_at, given.filled_by))
    assert (got.worth[:, 0] == torch.inf).all()
    again = given._replace(token=got.predicted[0], prob=got.predicted[1], score=got.predicted[2])
    assert_bits(run(backend, again), got)


@every_backend
def test_the_same_on_every_run(backend):
    given = a_round(rng(), 20, kind="few values")
    once = run(backend, given)
    for _ in range(3):
        assert_bits(run(backend, given), once)
