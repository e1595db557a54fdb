"""Times every registered operator, case by case: verified first, one line per provider.

``python -m bench.device.measure OUT SECONDS [--dry-run]``. Operators take turns, each with its most
important case first, until the time is up. The rehearsal has tiny cases on the CPU, goes the same
way with the host's clock, and keeps no figure.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, zip_longest
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch

from bench.device import records
from bench.device.records import OURS
from bench.device.roof import roofs
from bench.registry import Case, Work, load, operators
from triselect.ops.operator import has_kernel
from triselect.report import device_timing
from triselect.report.timing import Call, Timing, interleaved

VERIFIED = 2  # inputs that every provider must get right before it is timed
ENOUGH = 10.0  # seconds: a case with less than that left is not begun
TO_COMPILE = 0.6  # of all seconds: after that torch.compile, which takes most of them, is left out


class Times(NamedTuple):
    """By name: latency on the host, time on the device; and the calls that made no graph."""

    host: Mapping[str, Timing]
    device: Mapping[str, Timing]
    uncaptured: frozenset[str]


def times(calls: Mapping[str, Call], refresh: Callable[[int], object], device: str) -> Times:
    """On a GPU, by both clocks. On the CPU this is a rehearsal: what the clock says is dropped."""
    if device == "cpu":
        interleaved(calls, seconds=0.1, rounds=(1, 1), shortest=0)
        return Times({}, {}, frozenset())
    waited = {name: device_timing.waited_for(call) for name, call in calls.items()}
    return Times(interleaved(waited, seconds=0.5), *device_timing.cold(calls, refresh))


def spread(timing: Timing | None, clock: str) -> dict[str, float | None]:
    names = ("p20", "p50", "p80")
    return {f"{clock}_us_{p}": getattr(timing, p) if timing else None for p in names}


def rates(microseconds: float | None, moved: int | None, flops: int | None) -> dict[str, Any]:
    return {
        "bytes": moved,
        "flops": flops,
        "gb_per_s": moved / microseconds / 1e3 if moved and microseconds else None,
        "tflop_per_s": flops / microseconds / 1e6 if flops and microseconds else None,
    }


def measure_roof(out: Path, device: str) -> float | None:
    """Records the roofs. Returns how fast the device copies, in GB/s read and written."""
    found = roofs(device, *((2**20, 64) if device == "cpu" else ()))
    took = times({name: roof.call for name, roof in found.items()}, lambda _: None, device).device
    copied = None
    for name, roof in found.items():
        timing = took.get(name)
        rate = rates(timing and timing.p50, roof.bytes, roof.flops)
        records.append(out, "roof", name=name, **spread(timing, "device"), **rate)
        copied = copied or rate["gb_per_s"]
    return copied


def measure(
    operator: str, case: Case, device: str, compiler: str | None, copied: float | None
) -> Iterator[dict[str, Any]]:
    """One record per provider of a case.

    Raises
    ------
    AssertionError
        A provider computes something else; none of them is timed then.
    """
    work: Work = case.build(device, compiler)
    for i in range(VERIFIED):
        work.refresh(i)
        for provider, call in work.calls.items():
            work.verify(provider, call())
    found = times(work.calls, work.refresh, device)
    empty = found.device.get(device_timing.EMPTY)
    for provider in work.calls:
        timing = found.device.get(provider)
        rate = rates(timing and timing.p50, work.bytes, work.flops)
        yield {
            "op": operator,
            "label": case.label,
            "sizes": case.sizes,
            "dtype": str(case.dtype).removeprefix("torch."),
            "data": work.data,
            "provider": provider,
            "backend": chosen(operator, device) if provider == OURS else provider,
            "verified": True,
            **spread(found.host.get(provider), "host"),
            **spread(timing, "device"),
            "samples": timing and timing.samples,
            "captured": provider not in found.uncaptured if timing else None,
            "empty_us_p50": empty and empty.p50,
            **rate,
            "share_of_roof": copied and rate["gb_per_s"] / copied,
            "unavailable": dict(work.unavailable) if provider == OURS else {},
        }


def chosen(operator: str, device: str) -> str:
    """The backend that ``auto`` takes; of several operators, that of the one named for them."""
    operator = getattr(load(operator), "OPERATOR", operator)
    if device == "cpu":
        return "native" if has_kernel(operator, "CPU") else "eager"
    return "triton" if has_kernel(operator, "CUDA") else "eager"


def on_gpu(operator: str) -> list[Case]:
    brought = load(operator)
    return [*getattr(brought, "ON_GPU", []), *brought.CASES]


def main(out: Path, seconds: float, dry_run: bool) -> None:
    deadline = monotonic() + seconds
    device = "cpu" if dry_run else "cuda"
    cases = {name: load(name).TINY if dry_run else on_gpu(name) for name in operators()}
    turns = zip_longest(*([(name, case) for case in cases[name]] for name in cases))
    queue = [turn for turn in chain.from_iterable(turns) if turn]
    copied = measure_roof(out, device)
    while queue and (left := deadline - monotonic()) > ENOUGH:
        operator, case = queue.pop(0)
        what = f"{operator}, {case.label}, {case.sizes}, {case.dtype}"
        print(f"{left:4.0f} s left: {what}")
        compiler = "aot_eager" if dry_run else "inductor"
        if left < (1 - TO_COMPILE) * seconds:
            compiler = None
        try:
            for row in measure(operator, case, device, compiler, copied):
                records.append(out, "benchmark", **row)
        except Exception as error:  # it is recorded, and the next case has its turn
            message = f"{what}: {type(error).__name__}: {error}"
            records.append(out, "error", phase="benchmarks", message=message, cut=False)
            print(message)
        gc.collect()
        if not dry_run:
            torch.cuda.synchronize()  # raises, and so ends the phase, where the device is lost
            torch.cuda.empty_cache()
    if queue:
        message = f"{len(queue)} of the less important cases were left out"
        records.append(out, "error", phase="benchmarks", message=message, cut=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), "--dry-run" in sys.argv)
