"""Every Triton kernel lowers for every target, within the budget recorded for it.

An operator joins with one file of `CASES` in this folder. `make gate` runs them; after a change
worth its price, `pytest -m compile_gate tests/gate --record-budgets` records what they use now.
"""

import json
import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from .lower import TARGETS, Case, Kernel, lower

HERE = Path(__file__).parent
BUDGETS = HERE / "budgets.json"
OPERATORS = sorted(
    {path.stem for path in HERE.glob("*.py")} - {"__init__", "conftest", "lower", "test_gate"}
)
CASES: dict[str, Case] = {
    f"{operator}: {case.name}": case
    for operator in OPERATORS
    for case in import_module(f".{operator}", __package__).CASES
}
pytestmark = pytest.mark.compile_gate


def lower_case(name: str, target: str) -> list[Kernel]:
    return lower(CASES[name], target)


@pytest.fixture(scope="module")
def lowered(request):
    """Everything that this run asks for, lowered side by side by forks that already hold torch."""
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        yield {
            (p["name"], p["target"]): pool.submit(lower_case, **p)
            for p in (
                item.callspec.params
                for item in request.session.items
                if item.module is request.module
            )
        }


@pytest.fixture(scope="module")
def budgets(request):
    recorded = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {"cases": {}}
    record = request.config.getoption("--record-budgets")
    if record:
        recorded["triton"] = version("triton")
    yield recorded
    if record:
        recorded["cases"] = {
            name: recorded["cases"][name] for name in CASES if name in recorded["cases"]
        }
        BUDGETS.write_text(json.dumps(recorded, indent=2) + "\n")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_lowers_within_its_budget(name, target, lowered, budgets, request):
    case = CASES[name]
    future: Future[list[Kernel]] = lowered[name, target]
    if reason := case.unsupported.get(target):
        assert future.exception() is not None, f"{target} lowers now, though {reason}"
        return
    kernels = future.result()

    for kernel in kernels:
        assert kernel.spilled == 0, (
            f"{kernel.name} spills {kernel.spilled} registers: use smaller tiles"
        )
        if case.wide_loads:
            assert kernel.wide_loads, f"{kernel.name} loads less than 128 bits at a time"
        if case.tensor_cores and target != "sm_75":  # Triton does not use those of Turing
            assert kernel.tensor_cores, f"{kernel.name} leaves the tensor cores idle"

    used = {k.name: {"registers": k.registers, "shared": k.shared} for k in kernels}
    if request.config.getoption("--record-budgets"):
        budgets["cases"].setdefault(name, {})[target] = used
        return
    if version("triton") != budgets["triton"]:
        return  # another compiler, other numbers: what is above holds for all
    budget = budgets["cases"].get(name, {}).get(target)
    assert budget, f"{name} has no budget for {target}: record it with --record-budgets"
    assert used.keys() == budget.keys()
    for kernel, resources in used.items():
        for resource, amount in resources.items():
            limit = budget[kernel][resource]
            assert amount <= limit, (
                f"{kernel} uses {amount} {resource}, its budget is {limit}: "
                "make it smaller, or record why it may grow with --record-budgets"
            )
