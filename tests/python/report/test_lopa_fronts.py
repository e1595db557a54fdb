"""Ways of decoding, what is counted of them, and how settings are chosen."""

from collections.abc import Iterator
from dataclasses import replace
from statistics import stdev

import pytest
import torch

from triselect import lopa
from triselect.models import MaskedDiffusion
from triselect.models.puzzles import BLOCK, EOS, KINDS, LENGTH, VOCABULARY, Kind, Puzzles, puzzles
from triselect.report import lopa_fronts
from triselect.report.estimate import Estimate
from triselect.report.lopa_fronts import (
    Decoded,
    Point,
    best_within,
    by_branches,
    decode,
    front,
    measure,
)
from triselect.report.lopa_methods import (
    D2F,
    EXTRA,
    FACTOR,
    METHODS,
    ONE,
    SCORES,
    TAUS,
    THRESHOLD,
    methods,
)


@pytest.fixture(autouse=True)
def no_gradient() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def model() -> MaskedDiffusion:
    """Random, and sure enough of some tokens that thresholds differ."""
    torch.manual_seed(0)
    made = MaskedDiffusion(VOCABULARY, width=32, layers=2, heads=2, max_length=128, eos_token=EOS)
    made.head.weight.data *= 8
    return made.eval().requires_grad_(False)


def point(accuracy: float, rounds: float, tau: float = 0.9) -> Point:
    one = Estimate(1.0, 0.1)
    return Point(
        "latin", "mean", tau, 3, 9, Estimate(accuracy, 0), Estimate(rounds, 0), one, 1.0, 0.5
    )


def test_an_estimate_of_a_ratio() -> None:
    over, under = [3.0, 5.0, 4.0, 8.0], [1.0, 2.0, 2.0, 3.0]
    found = Estimate.ratio(over, under)
    assert found.mean == pytest.approx(20 / 8)
    rest = [(a - 2.5 * b) / 2 for a, b in zip(over, under, strict=True)]
    assert found.error == pytest.approx(stdev(rest) / 2)
    assert Estimate.ratio([4.0, 8.0], [1.0, 2.0]).error == pytest.approx(0)


def test_one_by_one_is_a_token_a_round(model: MaskedDiffusion) -> None:
    given = puzzles(0, 5, "latin")
    found = measure(model, given, ONE, 1.0)
    assert (found.rounds, found.lookaheads, found.win_rate) == (Estimate(36.0, 0.0), 0, 0.0)
    assert found.tokens_per_round.mean == found.tokens_per_forward == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_each_puzzle_alone(model: MaskedDiffusion, kind: Kind) -> None:
    given = puzzles(0, 6, kind)
    for method in (THRESHOLD, *SCORES[:1]):
        alone = [
            lopa.generate(model, prompt[None], method.config(kind, 0.6)).metrics
            for prompt in given.prompts
        ]
        found = measure(model, given, method, 0.6)
        tokens, rounds = (sum(getattr(m, name)[0] for m in alone) for name in ("tokens", "rounds"))
        assert found.tokens_per_round.mean == pytest.approx(tokens / rounds)
        assert found.rounds.mean == pytest.approx(rounds / 6)
        forwards = rounds * (method.lookaheads + 1)
        assert found.tokens_per_forward == pytest.approx(tokens / forwards)


def test_batches_change_nothing(model: MaskedDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    given = puzzles(0, 7, "letters")
    whole = measure(model, given, D2F, 0.6)
    monkeypatch.setattr(lopa_fronts, "TOGETHER", 3)
    assert measure(model, given, D2F, 0.6) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_puzzles_that_are_done_leave_the_batch(model: MaskedDiffusion, kind: Kind) -> None:
    given = puzzles(0, 6, kind)
    for method in (D2F, SCORES[0]):
        config = method.config(kind, 0.95)
        done, expected = decode(model, given, config), lopa.generate(model, given.prompts, config)
        for mine, other in zip(done.tokens, expected.tokens, strict=True):
            assert torch.equal(mine[: len(other)].long(), other)
        assert done.metrics._replace(seconds=0, first_seconds=0) == expected.metrics._replace(
            seconds=0, first_seconds=0
        )
        assert len(set(done.metrics.rounds)) > 1


def test_accuracy_is_of_puzzles(model: MaskedDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    given = puzzles(0, 4, "letters")
    answers = given.answers.clone()
    answers[2] = answers[2].roll(1)
    real = lopa_fronts.decode

    def answered(model: MaskedDiffusion, part: Puzzles, config: lopa.Config) -> Decoded:
        return real(model, part, config)._replace(tokens=answers)

    monkeypatch.setattr(lopa_fronts, "decode", answered)
    assert measure(model, given, THRESHOLD, 0.9).accuracy == Estimate.of([1, 1, 0, 1])


def test_the_control_takes_every_lookahead_unseen(model: MaskedDiffusion) -> None:
    given = puzzles(0, 4, "latin")
    found = measure(model, given, EXTRA, 0.999)
    config = EXTRA.config("latin", 0.999)
    done = lopa.generate(model, given.prompts, config)
    for at, by in zip(*done.history, strict=True):
        filled = [by[at == i].tolist() for i in range(1, int(at.max()) + 1)]
        # Every round but one in which the anchor filled all that was left.
        assert all(1 in row for row in filled[:-1])
    assert found.lookaheads == 1
    assert found.tokens_per_forward == found.tokens_per_round.mean, "no other row was needed"
    assert found.rounds.mean < measure(model, given, THRESHOLD, 0.999).rounds.mean


def test_methods_are_what_they_are_called() -> None:
    for kind in KINDS:
        for method in METHODS:
            config = method.config(kind, 0.9)
            assert (config.length, config.block_length) == (LENGTH[kind], BLOCK[kind])
            in_turn = config.add_threshold == config.activate_threshold == 1
            assert in_turn == (method in (ONE, THRESHOLD, FACTOR))
            assert config.threshold == (1.0 if method is ONE else 0.9)
    assert FACTOR.config("latin", 0.9).factor == pytest.approx(0.2)
    assert ONE.config("latin", 0.9).threshold == 1.0
    assert SCORES[0].config("latin", 0.9, 5).num_lookaheads == 5
    assert len({(m.config("latin", 0.9).score, str(m.settings)) for m in SCORES}) == len(SCORES)
    assert D2F in methods("letters")
    assert D2F not in methods("latin"), "one block"


def test_fronts_hold_every_method_at_every_threshold(model: MaskedDiffusion) -> None:
    given, calls = puzzles(0, 2, "letters"), []
    found = front(model, given, (ONE, THRESHOLD, EXTRA), (0.5, 0.9), lambda: calls.append(1))
    assert [(p.method, p.tau) for p in found] == [
        ("one", 1.0),
        *(("threshold", 0.5), ("threshold", 0.9)),
        *(("extra", 0.5), ("extra", 0.9)),
    ]
    assert len(calls) == 5
    by_count = by_branches(model, given, SCORES[0], 0.9, (0, 1, 2))
    assert [p.lookaheads for p in by_count] == [0, 1, 2]
    assert by_count[0] == replace(measure(model, given, D2F, 0.9), method="mean")
    assert TAUS[0] == 0.5
    assert TAUS[-1] == 0.999


def test_the_best_is_the_one_with_the_fewest_rounds_of_those_accurate_enough() -> None:
    points = [point(0.9, 5), point(0.95, 7), point(0.96, 6), point(0.99, 9)]
    assert best_within(points, 0.95) is points[2]
    with pytest.raises(ValueError, match=r"no point has an accuracy of 0\.995 or more"):
        best_within(points, 0.995)
