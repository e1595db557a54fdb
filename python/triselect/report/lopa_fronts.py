"""How many puzzles are solved in how many rounds, by way of decoding and threshold."""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect import lopa
from triselect.lopa.metrics import Metrics
from triselect.lopa.metrics import measure as metrics_of
from triselect.models.masked_diffusion import Cache, MaskedDiffusion
from triselect.models.puzzles import EOS, Kind, Puzzles, solved
from triselect.report.estimate import Estimate
from triselect.report.lopa_methods import TAUS, THRESHOLD, Method

TOGETHER = 16  # sequences in a batch
TARGET = 0.98  # the τ of threshold decoding that others are held against,
WITHIN = 0.01  # in accuracy


@dataclass(frozen=True)
class Point:
    """What one way of decoding made of `puzzles` puzzles of one kind.

    `accuracy`: of puzzles. `rounds`: of a puzzle. `tokens_per_round`: of all together, in which a
    round counts once however many branches it has, and `tokens_per_forward`, in which each branch
    counts that was needed. `win_rate`: of rounds, those that a lookahead won.
    """

    kind: Kind
    method: str
    tau: float
    lookaheads: int
    puzzles: int
    accuracy: Estimate
    rounds: Estimate
    tokens_per_round: Estimate
    tokens_per_forward: float
    win_rate: float


class Decoded(NamedTuple):
    """Of B puzzles: tokens ``(B, G)`` as filled, and what it took."""

    tokens: Tensor
    metrics: Metrics


@torch.inference_mode()
def decode(model: MaskedDiffusion, given: Puzzles, config: lopa.Config) -> Decoded:
    """As `lopa.generate`, but those that are done leave the batch: the others go on alone."""
    decoder = lopa.Decoder(model, config)
    state = decoder.begin(list(given.prompts))
    left = torch.arange(len(given.prompts))
    tokens, filled_at, filled_by = (state.tokens.clone() for _ in range(3))
    while len(left):
        state = decoder.step(state)
        for whole, now in (
            (tokens, state.tokens),
            (filled_at, state.filled_at),
            (filled_by, state.filled_by),
        ):
            whole[left] = now
        going_on = ~decoder.done(state)
        left, state = left[going_on], rows(state, going_on)
    ended = (tokens == EOS).int()
    lengths = (ended.argmax(1) + 1).where(ended.any(1), tokens.shape[1]).tolist()
    widths = [int(config.num_lookaheads)] * config.length
    return Decoded(
        tokens, metrics_of(lopa.History(filled_at, filled_by), lengths, widths, 0.0, 0.0)
    )


def rows(state: lopa.State, kept: Tensor) -> lopa.State:
    """Of the sequences of a state those ``(B,)``, with their cache."""
    if kept.all():
        return state
    fields: dict[str, Any] = {
        name: x[kept] for name, x in state._asdict().items() if isinstance(x, Tensor)
    }
    predicted = lopa.Confidence(*(x[kept] for x in state.predicted))
    cache = Cache(*(x[:, kept] for x in state.cache))
    return state._replace(**fields, predicted=predicted, cache=cache)


def measure(
    model: MaskedDiffusion,
    given: Puzzles,
    method: Method,
    tau: float,
    lookaheads: int | None = None,
) -> Point:
    """Decode them all."""
    config = method.config(given.kind, tau, lookaheads)
    right: list[float] = []
    tokens: list[int] = []
    rounds: list[int] = []
    wins = 0
    for some in zip(given.prompts.split(TOGETHER), given.answers.split(TOGETHER), strict=True):
        part = Puzzles(given.kind, *some)
        done = decode(model, part, config)
        right += solved(part, done.tokens).float().tolist()
        tokens += done.metrics.tokens
        rounds += done.metrics.rounds
        wins += sum(done.metrics.lookahead_wins)
    branches = int(config.num_lookaheads) + 1 if method.verified else 1
    per_round = Estimate.ratio(tokens, rounds)
    return Point(
        kind=given.kind,
        method=method.name,
        tau=tau,
        lookaheads=int(config.num_lookaheads),
        puzzles=len(right),
        accuracy=Estimate.of(right),
        rounds=Estimate.of(rounds),
        tokens_per_round=per_round,
        tokens_per_forward=per_round.mean / branches,
        win_rate=wins / sum(rounds),
    )


def front(
    model: MaskedDiffusion,
    given: Puzzles,
    methods: Iterable[Method],
    taus: Sequence[float] = TAUS,
    done: Callable[[], None] = lambda: None,
    lookaheads: int | None = None,
) -> list[Point]:
    """Each method at each threshold, if it has one, with as many lookaheads as it has, or these."""
    points = []
    for method in methods:
        for tau in taus if method.swept else [1.0]:
            points.append(measure(model, given, method, tau, lookaheads))
            done()
    return points


def by_branches(
    model: MaskedDiffusion,
    given: Puzzles,
    method: Method,
    tau: float,
    lookaheads: Iterable[int],
    done: Callable[[], None] = lambda: None,
) -> list[Point]:
    """The paper's Figure 4: one method by its number of lookaheads."""
    points = []
    for count in lookaheads:
        points.append(measure(model, given, method, tau, count))
        done()
    return points


def best_within(points: Iterable[Point], least: float) -> Point:
    """The one with the fewest rounds of those that are at least so accurate."""
    enough = [point for point in points if point.accuracy.mean >= least]
    if not enough:
        raise ValueError(f"no point has an accuracy of {least:.3f} or more")
    return min(enough, key=lambda point: point.rounds.mean)


def target(points: Iterable[Point]) -> Point:
    """Threshold decoding at `TARGET`."""
    return next(p for p in points if p.method == THRESHOLD.name and p.tau == TARGET)


def chosen(
    choosing: Sequence[Point], reporting: Iterable[Point], methods: Container[str]
) -> Point | None:
    """What is reported of the setting of these methods that was best on the puzzles for choosing:
    the fewest rounds within a point of the target; None if none is. Both of one kind.
    """
    least = target(choosing).accuracy.mean - WITHIN - 1e-9  # a point is a point, in floats too
    among = [point for point in choosing if point.method in methods]
    if all(point.accuracy.mean < least for point in among):
        return None
    return of_setting(best_within(among, least), reporting)


def of_setting(wanted: Point, points: Iterable[Point]) -> Point:
    """The same way of decoding on other puzzles."""

    def setting(point: Point) -> tuple[object, ...]:
        return point.kind, point.method, point.tau, point.lookaheads

    return next(point for point in points if setting(point) == setting(wanted))
