"""Every other operator against what people would otherwise run: the cases of `operators`.

As in bench_grouped_topk.py, ratios come from ``us_p50`` in ``extra_info``, all providers of a case
timed in turn; what pytest-benchmark itself times is latency and no more.
"""

from functools import lru_cache
from typing import Any

import pytest

from triselect.report.timing import Timing, interleaved

from .device.measure import chosen
from .device.records import OURS
from .registry import Case, Work, load, operators

APART = "grouped_topk"  # it has a suite of its own
CASES = [
    pytest.param(operator, case, id=f"{operator}-{case.label}-{case.sizes}-{case.dtype}")
    for operator in operators()
    if operator != APART
    for case in load(operator).CASES
]


@lru_cache(maxsize=1)
def measured(operator: str, index: int, smoke: bool) -> tuple[Work, dict[str, Timing]]:
    """A case's calls, each verified on two inputs, and their times in one run."""
    brought = load(operator)
    case = brought.TINY[index % len(brought.TINY)] if smoke else brought.CASES[index]
    work = case.build("cpu", None if smoke else "inductor")
    for i in range(2):
        work.refresh(i)
        for provider, call in work.calls.items():
            work.verify(provider, call())
    return work, {} if smoke else interleaved(work.calls, seconds=0.5)


@pytest.mark.parametrize(("operator", "case"), CASES)
@pytest.mark.benchmark(max_time=0.1, min_rounds=5)
def test_operator(benchmark: Any, operator: str, case: Case, smoke: bool) -> None:
    work, times = measured(operator, load(operator).CASES.index(case), smoke)
    benchmark.extra_info |= {
        "op": operator,
        "label": case.label,
        "sizes": case.sizes,
        "dtype": str(case.dtype).removeprefix("torch."),
        "device": "cpu",
        "data": work.data,
        "bytes": work.bytes,
        "backend": chosen(operator, "cpu"),
        "providers": {name: timing._asdict() for name, timing in times.items()},
        "unavailable": dict(work.unavailable),
    }
    if times:
        benchmark.extra_info["gb_per_s"] = work.bytes / times[OURS].p50 / 1e3
    benchmark(work.calls[OURS])
