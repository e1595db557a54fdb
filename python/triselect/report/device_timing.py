"""Device time on a GPU: graph replay, a cold cache, inputs that take turns."""

import gc
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import NamedTuple

import torch

from triselect.report.timing import Call, Timing, summary

FLUSH_BYTES = 512 * 2**20  # several times the second-level cache of any GPU
WARM_UP = 3  # rounds that do not count: a graph's first replay uploads it, and clocks rise
FEWEST = 20  # rounds that do, however long they take
EMPTY = "empty"


class Cold(NamedTuple):
    """Timings by name, that of an `EMPTY` kernel among them, and the calls that made no graph.

    The time of a call that could not be captured includes its launches, as far as the flush before
    it does not hide them.
    """

    timings: dict[str, Timing]
    uncaptured: frozenset[str]


def waited_for(call: Call) -> Call:
    """The call and the end of its work on the device: latency as the host sees it."""

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def cold(
    calls: Mapping[str, Call],
    refresh: Callable[[int], object],
    *,
    rounds: int = 100,
    seconds: float = 2.0,
) -> Cold:
    """Microseconds of device time per call on the current device, all calls in turn.

    Before each call, ``refresh(round)`` writes the next input into what the calls read, and a write
    of `FLUSH_BYTES` drives it out of the cache; while that lasts, the host queues what is timed.
    What events record includes the start of a graph: the time of the empty kernel says how much
    that is. Ends after `rounds`, or after `FEWEST` once `seconds` have passed.
    """
    runs: dict[str, Call] = {}
    uncaptured = set()
    for name, call in {**calls, EMPTY: lambda: torch.cuda._sleep(0)}.items():
        try:
            runs[name] = captured(call)
        except RuntimeError:
            torch.cuda.synchronize()
            runs[name] = call
            uncaptured.add(name)
    names = list(runs)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    begin = perf_counter()
    try:
        for done in range(WARM_UP + rounds):
            if done >= WARM_UP + FEWEST and perf_counter() - begin > seconds:
                break
            for name in names[done % len(names) :] + names[: done % len(names)]:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                refresh(done)
                flush.zero_()
                start.record()
                runs[name]()
                end.record()
                events[name].append((start, end))
            torch.cuda.synchronize()
    finally:
        if collecting:
            gc.enable()
    timings = {
        name: summary([1e3 * start.elapsed_time(end) for start, end in pairs[WARM_UP:]])
        for name, pairs in events.items()
    }
    return Cold(timings, frozenset(uncaptured))


def captured(call: Call) -> Call:
    """The replay of a CUDA graph of `call`.

    Raises
    ------
    RuntimeError
        Something in it cannot be captured. The current stream is what it was before.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    # `torch.cuda.graph` enters the stream too, but leaves it only if the capture ends well.
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
        with torch.cuda.graph(graph, stream=stream):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay
