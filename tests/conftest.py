"""What every test runs under, and which tests can run here."""

import os
from importlib.util import find_spec

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

try:
    from hypothesis import settings
except ImportError:  # files that draw examples skip themselves
    pass
else:
    settings.register_profile("dev", deadline=None, max_examples=100)
    settings.register_profile(
        "ci", deadline=None, max_examples=50, derandomize=True, database=None, print_blob=True
    )
    settings.register_profile("brief", settings.get_profile("ci"), max_examples=20)
    settings.register_profile("thorough", deadline=None, max_examples=2000)
    profile = "ci" if "CI" in os.environ else "dev"
    if INTERPRETED:  # slow: the other backends have seen more of the same examples
        profile = "brief"
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", profile))


def missing(item: pytest.Item) -> str | None:
    """What a marked test needs that is not here."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        return "needs a CUDA or ROCm device"
    if item.get_closest_marker("interpret"):
        if find_spec("triton") is None:
            return "triton is not installed"
        if not INTERPRETED:
            return "runs in a process of its own, with TRITON_INTERPRET=1"
    if item.get_closest_marker("compile_gate"):
        if find_spec("triton") is None:
            return "triton is not installed"
        if INTERPRETED:
            return (
                "needs Triton's compiler, and TRITON_INTERPRET=1 puts the interpreter in its place"
            )
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if reason := missing(item):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    """An element that no one wrote is NaN or the largest integer, not whatever was there before."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill
