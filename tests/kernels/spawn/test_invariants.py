"""What holds of a round's branches, whatever the backend."""

import numpy as np
import pytest
import torch

from triselect.ops.spawn import FAR

from ..backends import assert_bits, flat
from .cases import EOS, MASK, Round, a_round, every_attention, every_backend, every_kind, run


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def window_of(given: Round, x: torch.Tensor, fill: int) -> torch.Tensor:
    """What the window shows of ``x (B, G)``."""
    window = given.options["window"]
    wide = torch.nn.functional.pad(x, (0, window), value=fill)
    here = given.start[:, None].long() + torch.arange(window)
    return wide.gather(1, here)


def is_open(given: Round) -> torch.Tensor:
    place = torch.arange(given.tokens.shape[1])
    ended = (given.tokens == given.options["eos_token"]).cumsum(1) > 0
    reach = given.added[:, None] * given.options["block_length"]
    first = place >= given.start[:, None]
    return (given.tokens == MASK) & ~ended & (place < reach) & first


@every_backend
@every_kind
@every_attention
def test_filled_positions_stay(backend, attention, kind):
    given = a_round(rng(), 30, kind=kind, attention=attention)
    before = window_of(given, given.tokens, MASK)
    got = run(backend, given)
    kept = (before != MASK)[:, None].expand_as(got.tokens)
    assert torch.equal(got.tokens[kept], before[:, None].expand_as(got.tokens)[kept])


@every_backend
@every_kind
@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_one_is_filled_at_least(backend, factor, kind):
    """Where something is predicted in the first block that is worked on."""
    given = a_round(rng(), 60, kind=kind, unknown=0, factor=factor, num_lookaheads=0)
    first = window_of(given, is_open(given), 0)[:, : given.options["block_length"]].any(1)
    assert first.any()
    before = (window_of(given, given.tokens, MASK) == MASK).sum(1)
    filled = before - (run(backend, given).tokens[:, 0] == MASK).sum(1)
    assert (filled[first] >= 1).all()


@every_backend
@every_kind
def test_lookaheads_are_the_anchor_and_one_token_more(backend, kind):
    given = a_round(rng(), 40, kind=kind, num_lookaheads=5)
    got = run(backend, given)
    anchor, lookaheads = got.tokens[:, :1], got.tokens[:, 1:]
    extra = got.extra[:, 1:, None]
    place = given.start[:, None, None] + torch.arange(given.options["window"])
    assert torch.equal(lookaheads != anchor, (place == extra) & (extra >= 0))
    own = given.predicted.token.gather(1, got.extra.clamp(0).long())[:, 1:, None]
    assert torch.equal(torch.where(place == extra, own, anchor), lookaheads)
    assert (got.extra[:, 0] == -1).all()
    assert not got.open[:, 1:][got.extra[:, 1:] < 0].any()


@every_backend
def test_fewer_lookaheads_are_the_first_of_more(backend):
    given = a_round(rng(), 20, kind="few values", num_lookaheads=6)
    most = run(backend, given)
    for k in range(6):
        fewer = run(backend, given.but(num_lookaheads=k))
        for name in ("tokens", "open", "asked", "extra"):
            assert_bits(getattr(fewer, name), getattr(most, name)[:, : k + 1].contiguous())
        for name in ("level", "added", "start"):
            assert_bits(getattr(fewer, name), getattr(most, name))


@every_backend
@every_attention
def test_branches_agree_on_frozen_blocks(backend, attention):
    given = a_round(rng(), 40, kind="sure", attention=attention, filled=0.7)
    got = run(backend, given)
    frozen = given.start[:, None] + torch.arange(given.options["window"]) < got.start[:, None]
    assert frozen.any() == (attention != "bidirectional")
    frozen = frozen[:, None].expand_as(got.tokens)
    assert torch.equal(got.tokens[frozen], got.tokens[:, :1].expand_as(got.tokens)[frozen])
    assert not got.open[frozen].any()


@every_backend
@every_attention
def test_the_pipeline_grows_by_one_at_most_and_stays_in_the_window(backend, attention):
    given = a_round(rng(), 60, kind="sure", attention=attention, add_at=0)
    got = run(backend, given)
    size, window = given.options["block_length"], given.options["window"]
    more = got.added - given.added
    assert set(more.tolist()) == {0, 1}
    assert (got.added * size <= given.tokens.shape[1]).all()
    assert (got.added * size <= given.start + window).all()
    assert (got.start >= given.start).all()
    assert (got.start <= torch.maximum(given.start, got.added * size)).all()


@every_backend
@every_attention
def test_the_next_window_never_passes_an_open_position(backend, attention):
    given = a_round(rng(), 60, kind="sure", attention=attention, filled=0.7)
    got = run(backend, given)
    place = given.start[:, None] + torch.arange(given.options["window"])
    first = torch.where(got.open[:, 0], place, FAR).amin(1)
    assert (got.start <= first).all()


@every_backend
@every_attention
def test_levels(backend, attention):
    given = a_round(rng(), 60, attention=attention)
    got = run(backend, given)
    size = given.options["block_length"]
    place = given.start[:, None] + torch.arange(given.options["window"])
    inside = place < given.tokens.shape[1]
    reached = inside & (place < got.added[:, None] * size)
    assert (got.level[~inside] == FAR).all()
    if attention == "bidirectional":
        assert (got.level[inside] == 0).all()
        return
    assert (got.level[~reached] == FAR).all()
    frozen = place < got.start[:, None]
    own = place // size + 1
    expected = (
        own if attention == "block_causal" else own.where(frozen, got.start[:, None] // size + 1)
    )
    assert torch.equal(got.level[reached], expected[reached].int())


@every_backend
def test_shifted_rows_predict_the_next_position(backend):
    given = a_round(rng(), 20)
    plain, shifted = run(backend, given), run(backend, given.but(shift=True))
    assert torch.equal(plain.asked, plain.open)
    assert torch.equal(shifted.asked[..., :-1], plain.open[..., 1:])
    assert not shifted.asked[..., -1].any()
    for name in ("tokens", "open", "extra", "level", "added", "start"):
        assert_bits(getattr(shifted, name), getattr(plain, name))


@every_backend
def test_a_finished_sequence_stays(backend):
    """Filled to its end, or to its end of text."""
    given = a_round(rng(), 6, in_window=4, ended=0)
    given.start.zero_()
    given.added.fill_(4)
    given.tokens[:3] = 5
    given.tokens[3:] = MASK
    given.tokens[3:, :3] = 5
    given.tokens[3:, 3] = EOS
    got = run(backend, given)
    assert torch.equal(got.tokens, given.tokens[:, None].expand_as(got.tokens))
    assert not got.open.any()
    assert (got.extra == -1).all()
    again = run(backend, given._replace(added=got.added, start=got.start))
    assert torch.equal(again.start, got.start)


@every_backend
@every_kind
def test_sequences_do_not_influence_each_other(backend, kind):
    given = a_round(rng(), 6, kind=kind)
    together = run(backend, given)
    for b in range(6):
        one = slice(b, b + 1)
        assert_bits(run(backend, given.of(one)), tuple(x[one].clone() for x in together))


@every_backend
def test_what_is_not_open_is_not_read(backend):
    """Predictions of closed positions are anything."""
    given = a_round(rng(), 20)
    expected = run(backend, given)
    token, prob, score = (x.clone() for x in given.predicted)
    closed = ~is_open(given)
    token[closed], prob[closed], score[closed] = 3, 1.0, torch.inf
    changed = given._replace(predicted=type(given.predicted)(token, prob, score))
    assert_bits(run(backend, changed), expected)


@every_backend
def test_the_same_on_every_run(backend):
    given = a_round(rng(), 20, kind="few values")
    once = run(backend, given)
    for _ in range(3):
        assert_bits(flat(run(backend, given)), flat(once))


@every_backend
def test_no_lookahead_leaves_nothing_open_while_blocks_are_to_come(backend):
    """One position is open: its lookahead would have nothing to be judged by."""
    given = a_round(rng(), 8, 4, 4, 2, ended=0, unknown=0, num_lookaheads=2)
    given.start.zero_()
    given.added.fill_(2)
    given.tokens.fill_(5)
    given.tokens[:, 6:] = MASK  # the block is not full enough for the next, and has no room
    given.predicted.prob.fill_(0)
    given.predicted.prob[:, 7] = 1
    got = run(backend, given)
    assert (got.tokens[:, 0, 6] == MASK).all()
    assert (got.extra == -1).all()
    given.predicted.prob.fill_(0)
    wide = a_round(rng(), 8, 2, 4, 2).options
    last = given._replace(tokens=given.tokens[:, :8], options=given.options | wide)
    last = last._replace(predicted=type(given.predicted)(*(x[:, :8] for x in given.predicted)))
    last.predicted.prob[:, 7] = 1
    assert (run(backend, last).extra[:, 1] == 6).all()  # no blocks are to come
