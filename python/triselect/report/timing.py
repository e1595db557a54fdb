"""Timing of several calls against each other, in one run."""

import gc
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import NamedTuple

import torch

Call = Callable[[], object]


class Timing(NamedTuple):
    """Microseconds per call: the median of `samples`, and the 20th and 80th percentile."""

    p20: float
    p50: float
    p80: float
    samples: int

    @property
    def wide(self) -> bool:
        """So spread out that something else must have kept the machine busy."""
        return self.p80 > 2 * self.p20


def summary(samples: list[float]) -> Timing:
    """Percentiles of samples, by linear interpolation."""
    p20, p50, p80 = torch.tensor(samples, dtype=torch.float64).quantile(
        torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    )
    return Timing(p20.item(), p50.item(), p80.item(), len(samples))


def interleaved(
    calls: Mapping[str, Call],
    *,
    seconds: float = 1.0,
    shortest: float = 300e-6,
    rounds: tuple[int, int] = (5, 200),
    clock: Callable[[], float] = perf_counter,
) -> dict[str, Timing]:
    """Time every call in turn, round after round, so that what slows the machine slows all of them.

    Parameters
    ----------
    calls : mapping of name to callable
        Called without arguments. What they return is dropped.
    seconds : float
        Time for all rounds together; exceeded where the fewest rounds take longer.
    shortest : float
        Seconds that one sample lasts at least: quick calls are repeated within it.
    rounds : tuple of int
        Fewest and most.
    clock : callable
        Seconds.

    Returns
    -------
    dict of str to Timing
        Microseconds per call. Each sample follows an untimed call of its own, so caches are warm;
        the order is rotated from round to round. Garbage collection is off meanwhile.
    """
    repeats = {name: _repeats(call, shortest, clock) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    fewest, most = rounds
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = clock()
        for done in range(most):
            if done >= fewest and clock() - start > seconds:
                break
            for name in names[done % len(names) :] + names[: done % len(names)]:
                samples[name].append(1e6 * _sample(calls[name], repeats[name], clock))
    finally:
        if collecting:
            gc.enable()
    return {name: summary(values) for name, values in samples.items()}


def _sample(call: Call, repeats: int, clock: Callable[[], float]) -> float:
    call()
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def _repeats(call: Call, shortest: float, clock: Callable[[], float]) -> int:
    repeats = 1
    # The least of three: one interruption must not pass for a slow call.
    while min(_sample(call, repeats, clock) for _ in range(3)) * repeats < shortest:
        repeats *= 2
    return repeats
