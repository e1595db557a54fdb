"""What must hold of any confidence, with no reference in sight."""

import math

import numpy as np
import pytest
import torch

from ..backends import assert_bits, every_dtype
from .cases import KINDS, UNSURE, draws, every_backend, every_kind, every_score, logits_of


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def skip_unless_bitwise(backend):
    if backend.name == "eager":
        pytest.skip("PyTorch adds in an order that depends on the number of rows")


@every_backend
@every_score
@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_a_row_has_the_same_bits_whatever_the_others_are(backend, drawn, score):
    skip_unless_bitwise(backend)
    logits = logits_of(rng(), 7, 20000, dtype=torch.bfloat16)
    draw = draws(rng(1), 7) if drawn else {}
    all_rows = backend(logits, score=score, **draw)
    order = torch.from_numpy(rng(2).permutation(7))
    permuted = {name: value[order] for name, value in draw.items()}
    assert_bits(backend(logits[order], score=score, **permuted), tuple(x[order] for x in all_rows))
    for r in (0, 6):
        alone = {name: value[r : r + 1] for name, value in draw.items()}
        one = backend(logits[r : r + 1], score=score, **alone)
        assert_bits(one, tuple(x[r : r + 1] for x in all_rows))
    some = torch.arange(7) % 3 == 0
    asked = backend(logits, score=score, rows=some, **draw)
    assert_bits(tuple(x[some] for x in asked), tuple(x[some] for x in all_rows))


@every_backend
def test_runs_and_threads_change_no_bit(backend):
    skip_unless_bitwise(backend)
    logits, before = logits_of(rng(), 3, 40000), torch.get_num_threads()
    once = backend(logits, score="neg_entropy")
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_bits(backend(logits.clone(), score="neg_entropy"), once)
    finally:
        torch.set_num_threads(before)


@every_backend
@every_kind
def test_a_row_that_is_not_asked_for(backend, kind):
    logits = logits_of(rng(), 3, 50, kind)
    got = backend(logits, rows=torch.zeros(3, dtype=torch.bool), **draws(rng(), 3))
    assert got.token.tolist() == [-1] * 3
    assert got.prob.tolist() == [0] * 3
    assert got.score.tolist() == [-math.inf] * 3


@every_backend
@every_score
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 3, 15, 16, 500, 519, 9000])
def test_a_row_with_nan_or_infinity_is_the_least_confident(backend, at, bad, score):
    logits = logits_of(rng(), 3, 9001)
    logits[1, at] = bad
    got = backend(logits, score=score)
    assert got.prob[1] == 0
    assert got.score[1] == -math.inf
    assert (got.prob[[0, 2]] > 0).all()
    assert got.score[[0, 2]].isfinite().all()
    if bad == math.inf:
        assert got.token[1] == at


@every_backend
@every_score
@pytest.mark.parametrize("kind", UNSURE)
@pytest.mark.parametrize("mask_token", [-1, 0, 1, 4])
def test_rows_without_a_token(backend, mask_token, kind, score):
    """The lowest that there is."""
    logits = logits_of(rng(), 4, 700, kind)
    for draw in ({}, draws(rng(), 4)):
        got = backend(logits, score=score, mask_token=mask_token, **draw)
        assert got.token.tolist() == [int(mask_token == 0)] * 4
        assert got.prob.tolist() == [0] * 4
        assert got.score.tolist() == [-math.inf] * 4


@every_backend
@pytest.mark.parametrize("at", [0, 7, 15, 16, 511, 512, 8000, 8999])
def test_the_mask_token_takes_no_part(backend, at):
    """As if it were not there: not in the choice, not in the sums, whatever its logit is."""
    logits = logits_of(rng(), 4, 9000)
    for score in ("max_prob", "margin", "neg_entropy"):
        found = []
        for value in (-math.inf, 100.0, math.inf, math.nan):
            logits[:, at] = value
            for draw in ({}, draws(rng(), 4)):
                found.append(backend(logits, score=score, mask_token=at, **draw))
                assert (found[-1].token != at).all()
        for other in found[2:]:
            assert_bits(other, found[0] if other.token.equal(found[0].token) else found[1])


@every_backend
@every_dtype
@pytest.mark.parametrize("kind", [k for k in KINDS if k.startswith(("norm", "tie", "conf", "all"))])
def test_torch_says_the_same(backend, kind, dtype):
    """Its softmax, max, topk, and the entropy of its Categorical."""
    logits = logits_of(rng(), 5, 3000, kind, dtype)
    p = (logits.double() / 0.6).softmax(-1)
    most, second = p.topk(2).values.unbind(1)
    got = {s: backend(logits, score=s, temperature=0.6) for s in ("max_prob", "margin")}
    assert torch.equal(got["margin"].token, logits.max(-1).indices.int())
    for found, oracle in ((got["max_prob"].score, most), (got["margin"].score, most - second)):
        torch.testing.assert_close(found.double(), oracle, rtol=1e-5, atol=1e-6)
    entropy = backend(logits, score="neg_entropy", temperature=0.6).score
    oracle = -torch.distributions.Categorical(probs=p).entropy()
    torch.testing.assert_close(entropy.double(), oracle, rtol=1e-5, atol=1e-5)
    assert_bits(got["max_prob"].prob, got["max_prob"].score)


@every_backend
def test_frequencies_follow_the_softmax(backend):
    """Pearson's statistic of 20000 draws of 12 tokens, beside what it exceeds once in 1000."""
    draws_of_each, tokens = 20000, 13
    logits = logits_of(rng(), 1, tokens).div(2).expand(draws_of_each, tokens).contiguous()
    each = torch.arange(draws_of_each)
    for temperature, by in ((1.0, "seed"), (0.5, "position"), (2.0, "step")):
        draw = {name: each if name == by else each * 0 + 5 for name in ("seed", "position", "step")}
        token = backend(logits, temperature=temperature, mask_token=4, **draw).token
        z = logits[0].double() / temperature
        z[4] = -math.inf
        often = z.softmax(0) * draws_of_each
        count = torch.bincount(token.long(), minlength=tokens)
        assert count[4] == 0
        rest = torch.arange(tokens) != 4
        assert ((count - often)[rest] ** 2 / often[rest]).sum() < 31.3  # 11 degrees of freedom


@every_backend
def test_the_same_seed_position_and_step_draw_the_same_token_in_any_row(backend):
    logits = logits_of(rng(), 1, 5000).expand(6, 5000).contiguous()
    draw = {name: value[:1].expand(6) for name, value in draws(rng(), 1).items()}
    assert len(set(backend(logits, **draw).token.tolist())) == 1
    for name in draw:
        others = draw | {name: draw[name] + torch.arange(6)}
        assert len(set(backend(logits, **others).token.tolist())) > 1
    high = draw | {"seed": draw["seed"] ^ (torch.arange(6) << 40)}
    assert len(set(backend(logits, **high).token.tolist())) > 1


@every_backend
def test_a_drawn_token_has_its_own_probability(backend):
    logits = logits_of(rng(), 50, 300)
    got = backend(logits, score="margin", **draws(rng(), 50))
    p = logits.double().softmax(-1)
    torch.testing.assert_close(got.prob.double(), p.gather(1, got.token[:, None].long())[:, 0])
    most, second = p.topk(2).values.unbind(1)
    assert (got.token != logits.argmax(1)).any()
    torch.testing.assert_close(got.score.double(), most - second, rtol=1e-5, atol=1e-6)


@every_backend
def test_ties_take_the_lowest(backend):
    logits = torch.zeros(1, 9000)
    for places in ([8999], [8192, 8999], [600, 8192], [511, 512], [17, 18, 600], [0, 1]):
        logits.zero_()[0, places] = 2
        assert backend(logits).token.tolist() == [places[0]]
        assert (backend(logits, score="margin").score == 0).all() == (len(places) > 1)
    assert backend(logits, mask_token=0).token.tolist() == [1]


@every_backend
def test_no_rows(backend):
    for draw in ({}, draws(rng(), 0)):
        got = backend(torch.empty(0, 7), rows=torch.empty(0, dtype=torch.bool), **draw)
        assert [x.shape for x in got] == [(0,)] * 3


@every_backend
def test_no_gradient(backend):
    logits = logits_of(rng(), 3, 40).requires_grad_()
    got = backend(logits, score="neg_entropy")
    assert not got.prob.requires_grad
    assert not got.score.requires_grad
    with torch.no_grad():
        assert_bits(backend(logits, score="neg_entropy"), got)


@every_backend
def test_inputs_are_left_alone(backend):
    logits = logits_of(rng(), 3, 900)
    before = logits.clone()
    backend(logits, mask_token=5, **draws(rng(), 3))
    assert_bits(logits, before)
