"""grouped_topk against what people would otherwise run, at the public function.

pytest-benchmark runs one case after the other, so its own figures are latency and no more. Ratios
come from ``us_p50`` in ``extra_info``: all providers of a shape, timed in turn in one go.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from triselect.ops import backends
from triselect.report import device_timing
from triselect.report.providers import LABELS, Providers, providers
from triselect.report.routers import DEEPSEEK_V3, OTHERS, PANGU, Router, sample, tokens_of
from triselect.report.timing import Timing, interleaved

from . import allocations, floors
from .device.measure import chosen

TOKENS = (1, 16, 256, 4096, 16384)
DTYPES = (torch.float32, torch.bfloat16)
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
SMOKE_TOKENS = 4
ROTATED = 4  # inputs that take turns on a device


class Case(NamedTuple):
    router: Router
    tokens: int
    dtype: torch.dtype
    device: str

    def __str__(self) -> str:
        return f"{self.router.name}-{self.tokens}-{name_of(self.dtype)}-{self.device}"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


CASES = [
    Case(router, tokens, dtype, device)
    for device in DEVICES
    for router in (PANGU, DEEPSEEK_V3)
    for dtype in DTYPES
    for tokens in TOKENS
]
CASES += [Case(router, 4096, torch.float32, device) for device in DEVICES for router in OTHERS]
LARGEST = [case for case in CASES if case.tokens == max(TOKENS) and case.device == "cpu"]


class Measured(NamedTuple):
    logits: Tensor
    who: Providers
    times: dict[str, dict[str, float]]


@lru_cache(maxsize=1)
def measured(case: Case, smoke: bool) -> Measured:
    """Everyone's call, verified, and their times in one run; a copy of as many bytes with them."""
    logits = tokens_of(case.router, case.tokens, case.dtype, case.device)
    # In smoke mode the compiler's front half has to do: the other takes ten seconds a shape.
    who = providers(case.router, logits, compiler="aot_eager" if smoke else "inductor")
    if smoke:
        return Measured(logits, who, {})
    source = torch.ones(moved(case.router, logits) // 2, dtype=torch.uint8, device=case.device)
    target = torch.empty_like(source)
    calls = {**who.calls, "copy": lambda: target.copy_(source)}
    if case.device == "cpu":
        host = interleaved(calls)
        return Measured(logits, who, {name: info(host, name) for name in who.calls})
    host = interleaved({name: device_timing.waited_for(call) for name, call in calls.items()})
    inputs = [logits.roll(i, 0) for i in range(ROTATED)]
    device, _ = device_timing.cold(calls, lambda i: logits.copy_(inputs[i % ROTATED]))
    empty = {"device_empty_us_p50": device[device_timing.EMPTY].p50}
    times = {name: info(host, name) | info(device, name, "device_") | empty for name in who.calls}
    return Measured(logits, who, times)


def info(timings: dict[str, Timing], name: str, clock: str = "") -> dict[str, float]:
    timing = timings[name]
    return {
        f"{clock}us_p20": timing.p20,
        f"{clock}us_p50": timing.p50,
        f"{clock}us_p80": timing.p80,
        f"{clock}samples": timing.samples,
        f"{clock}copy_us_p50": timings["copy"].p50,
    }


def moved(router: Router, logits: Tensor) -> int:
    """Bytes of the logits read and of the weights and experts written."""
    return logits.numel() * logits.element_size() + logits.shape[0] * router.top_k * 8


def shape_of(case: Case, logits: Tensor) -> dict[str, Any]:
    return {
        "op": "grouped_topk",
        "router": case.router.name,
        "label": case.router.label,
        "tokens": len(logits),
        "shape": list(logits.shape),
        "dtype": name_of(case.dtype),
        "device": case.device,
        "data": sample().source,
        "bytes": moved(case.router, logits),
    }


@pytest.mark.parametrize("provider", LABELS)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.benchmark(max_time=0.1, min_rounds=5)
def test_grouped_topk(benchmark: Any, case: Case, provider: str, smoke: bool) -> None:
    logits, who, times = measured(case._replace(tokens=SMOKE_TOKENS) if smoke else case, smoke)
    if provider in who.unavailable:
        pytest.skip(who.unavailable[provider])
    benchmark.group = str(case)
    benchmark.extra_info |= shape_of(case, logits) | times.get(provider, {})
    benchmark.extra_info["provider"] = provider
    benchmark.extra_info["backend"] = (
        chosen("grouped_topk", case.device) if provider == "triselect" else provider
    )
    if times:
        clock = "us_p50" if case.device == "cpu" else "device_us_p50"
        copy = clock.replace("us", "copy_us")
        took = times[provider][clock]
        benchmark.extra_info["gb_per_s"] = moved(case.router, logits) / took / 1e3
        benchmark.extra_info["share_of_copy"] = times[provider][copy] / took
    call = who.calls[provider]
    benchmark(call if case.device == "cpu" else device_timing.waited_for(call))


@pytest.mark.parametrize("case", LARGEST, ids=str)
@pytest.mark.benchmark(max_time=0.1, min_rounds=5)
def test_distance_from_the_floor(benchmark: Any, case: Case, smoke: bool) -> None:
    """The C++ kernel against two loops: the bytes in and out, and the keys computed."""
    if reason := backends.missing_native() or floors.missing():
        pytest.skip(reason)
    logits = tokens_of(case.router, SMOKE_TOKENS if smoke else case.tokens, case.dtype)
    native = providers(case.router, logits, compiler=None).calls["native"]
    move_bytes, compute_keys = floors.loops(case.router, logits)
    benchmark.group = "floor"
    benchmark.extra_info |= shape_of(case, logits)
    if not smoke:
        calls = {"native": native, "bytes": move_bytes, "keys": compute_keys}
        times = {f"{name}_us_p50": t.p50 for name, t in interleaved(calls).items()}
        floor = times["bytes_us_p50"] + times["keys_us_p50"]
        benchmark.extra_info |= times | {"floor_us": floor}
    benchmark(lambda: (move_bytes(), compute_keys()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("router", [PANGU, DEEPSEEK_V3], ids=lambda router: router.name)
def test_allocates_nothing_but_its_outputs(router: Router, dtype: str) -> None:
    if reason := backends.missing_native() or allocations.missing():
        pytest.skip(reason)
    calls = allocations.of_calls(tokens=4096)
    found = calls[f"triselect {router.name} {dtype}"]
    assert found.requests == 2
    # The allocator is asked for whole cache lines.
    assert found.outputs <= found.bytes < found.outputs + 2 * 64
    eager = calls[f"composition {router.name} {dtype}"]
    assert eager.bytes > 2 * found.bytes, "the counter sees nothing"
