"""Timing of calls in turn, by a clock that the tests wind."""

import gc

import pytest

from triselect.report.timing import interleaved, summary


class Clock:
    """Time passes only in calls, as long as they say."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, *durations: float):
        left = list(durations)

        def run() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_percentiles_of_known_samples() -> None:
    timing = summary([float(i) for i in range(101)])
    assert timing == pytest.approx((20, 50, 80, 101))


def test_microseconds_of_every_call() -> None:
    clock = Clock()
    calls = {"slow": clock.call("slow", 2e-3), "quick": clock.call("quick", 5e-6)}
    timings = interleaved(calls, seconds=0.1, clock=clock)
    assert timings["slow"].p50 == pytest.approx(2000)
    assert timings["quick"].p50 == pytest.approx(5)
    assert timings["slow"].samples == timings["quick"].samples >= 5


def test_quick_calls_are_repeated_within_a_sample() -> None:
    clock = Clock()
    interleaved({"quick": clock.call("quick", 1e-6)}, shortest=64e-6, rounds=(1, 1), clock=clock)
    sampled = 1 + 64  # the untimed call, then as many as last 64 µs
    calibration = 3 * sum(1 + 2**i for i in range(7))
    assert len(clock.log) == calibration + sampled


def test_one_interruption_does_not_pass_for_a_slow_call() -> None:
    clock = Clock()
    call = clock.call("quick", 1e-6, 1.0, 1e-6)  # the first timed call is interrupted
    timing = interleaved({"quick": call}, shortest=64e-6, rounds=(1, 1), clock=clock)["quick"]
    assert timing.p50 == pytest.approx(1)
    assert len(clock.log) > 64


def test_calls_take_turns_and_the_first_changes() -> None:
    clock = Clock()
    calls = {name: clock.call(name, 1e-3) for name in "abc"}
    interleaved(calls, seconds=0, rounds=(3, 3), clock=clock)
    rounds = clock.log[-18:]  # an untimed and a timed call each
    assert "".join(rounds[::2]) == "abcbcacab"


def test_stops_when_time_is_up_but_not_before_the_fewest_rounds() -> None:
    clock = Clock()
    timing = interleaved({"slow": clock.call("slow", 1.0)}, seconds=0.5, rounds=(4, 9), clock=clock)
    assert timing["slow"].samples == 4
    timing = interleaved({"slow": clock.call("slow", 1.0)}, seconds=99, rounds=(4, 9), clock=clock)
    assert timing["slow"].samples == 9


def test_garbage_collection_is_off_meanwhile_and_back_after_an_error() -> None:
    seen = []

    def call() -> None:
        seen.append(gc.isenabled())
        if len(seen) > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleaved({"call": call}, shortest=0, rounds=(100, 100))
    assert seen[-1] is False
    assert gc.isenabled()
