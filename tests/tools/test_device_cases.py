"""What operators bring to the device suite, and the clock that times it."""

from pathlib import Path

import pytest
import torch
from bench.registry import assert_right, load, operators

from triselect.report import device_timing

KERNELS = Path(__file__).parents[2] / "kernels"
SMALL = [
    pytest.param(small, id=f"{operator}: {small.name}")
    for operator in operators()
    for small in load(operator).SMALL
]
TINY = [
    pytest.param(case, id=f"{operator}: {case.label}")
    for operator in operators()
    for case in load(operator).TINY
]


def test_every_triton_kernel_is_registered():
    """See bench/registry.py for what a file in bench/operators/ holds."""
    rooms = {path.parent.name for path in KERNELS.glob("*/triton*")}
    assert rooms <= set(operators())


@pytest.mark.parametrize("operator", operators())
def test_there_is_something_to_time_and_to_look_into(operator):
    brought = load(operator)
    assert brought.CASES
    assert brought.TINY
    names = [small.name for small in brought.SMALL]
    assert names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("small", SMALL)
def test_small_cases_mean_what_the_reference_means(small):
    first, second = small.inputs(0), small.inputs(1)
    assert [tensor.shape for tensor in first] == [tensor.shape for tensor in second]
    got = small.call(*first, backend="eager")
    assert_right(small, got, first)
    with pytest.raises(AssertionError):
        assert_right(small, got, second)


@pytest.mark.parametrize("case", TINY)
def test_a_wrong_result_is_not_timed(case):
    work = case.build("cpu", None)
    results = {name: call() for name, call in work.calls.items()}
    for name, result in results.items():
        work.verify(name, result)
    work.refresh(1)
    for name, result in results.items():
        with pytest.raises(AssertionError):
            work.verify(name, result)


@pytest.mark.gpu
@pytest.mark.parametrize("small", SMALL)
def test_a_captured_graph_computes_fresh_inputs(small):
    static = [tensor.cuda() for tensor in small.inputs(0)]
    small.call(*static)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = small.call(*static)
    for seed in (1, 2):
        fresh = small.inputs(seed)
        for tensor, values in zip(static, fresh, strict=True):
            tensor.copy_(values)
        for tensor in got:
            tensor.fill_(1)
        graph.replay()
        assert_right(small, got, fresh)


@pytest.mark.gpu
def test_device_time_of_calls_that_take_turns():
    value = torch.zeros(1, device="cuda")
    seen: list[torch.Tensor] = []
    calls = {
        "long": lambda: torch.cuda._sleep(10**6),
        "short": lambda: torch.cuda._sleep(10**5),
        "waits": lambda: seen.append(value.cpu()),  # waits for the device, so makes no graph
    }
    before = torch.cuda.current_stream()
    timings, uncaptured = device_timing.cold(calls, lambda i: value.fill_(i), rounds=5)
    assert torch.cuda.current_stream() == before
    assert uncaptured == {"waits"}
    assert timings[device_timing.EMPTY].p50 < timings["short"].p50 < timings["long"].p50
    assert timings["long"].samples == 5
    # The inputs took turns, and each was there when the call was made.
    rounds = device_timing.WARM_UP + 5
    assert [int(tensor) for tensor in seen[-rounds:]] == list(range(rounds))
