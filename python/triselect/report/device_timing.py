"""Device time on a GPU: graph replay, a cold cache, inputs that take turns."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from triselect.report.timing import Call, Timing, summary

FLUSH_BYTES = 512 * 2**20  # several times the second-level cache of any GPU


def waited_for(call: Call) -> Call:
    """The call and the end of its work on the device: latency as the host sees it."""

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def cold(
    calls: Mapping[str, Call], logits: Tensor, inputs: Sequence[Tensor], *, rounds: int = 40
) -> dict[str, Timing]:
    """Microseconds of device time per call, all calls in turn, and of an `empty` kernel with them.

    Before each call, one of `inputs` is copied into `logits`, which the calls read, and a write of
    `FLUSH_BYTES` drives it out of the cache. What events record includes the start of a graph: the
    time of the empty kernel says how much that is.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=logits.device)
    runs = {name: _captured(call) for name, call in calls.items()}
    runs["empty"] = _captured(lambda: torch.cuda._sleep(0))
    names = list(runs)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in names}
    for done in range(rounds):
        for name in names[done % len(names) :] + names[: done % len(names)]:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            logits.copy_(inputs[done % len(inputs)])
            flush.zero_()
            start.record()
            runs[name]()
            end.record()
            events[name].append((start, end))
        torch.cuda.synchronize()
    return {
        name: summary([1e3 * start.elapsed_time(end) for start, end in pairs])
        for name, pairs in events.items()
    }


def _captured(call: Call) -> Callable[[], object]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:  # something in it cannot be captured: timed as it is, launches included
        torch.cuda.synchronize()
        return call
    return graph.replay
