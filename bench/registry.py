"""What an operator brings to the benchmarks, on the CPU and on a GPU, in `operators/<operator>.py`.

``CASES``  `Case`s to time, the most important first: a deadline cuts the rest.
``ON_GPU`` what comes before them on a GPU, too large for a CPU; if there is any.
``TINY``   the like, small enough for a rehearsal on the CPU.
``SMALL``  `Small` cases for compute-sanitizer, the interpreter and captured graphs.
``OPERATOR``  where it is about more than one: which one's backend is named.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.report.timing import Call

ROTATED = 4  # inputs of a case that take turns


class Work(NamedTuple):
    """A case on a device: who computes it, what they read, and what is right."""

    calls: Mapping[str, Call]  # by provider, without arguments; all read the same tensors
    unavailable: Mapping[str, str]  # providers that cannot be called, and why
    refresh: Callable[[int], object]  # writes the i-th input into those tensors, i from 0 up
    verify: Callable[[str, Any], object]  # provider, result: raises AssertionError if it is wrong
    bytes: int  # read and written by one call, each once
    flops: int | None = None  # where arithmetic could be the limit
    data: str = "random numbers"  # what the inputs are


class Case(NamedTuple):
    """A size to time. `build` takes a device and a backend of torch.compile, or None without it."""

    label: str
    sizes: dict[str, int]
    dtype: torch.dtype
    build: Callable[[str, str | None], Work]


class Small(NamedTuple):
    """A call of a few tokens that goes through one of the kernel's ways."""

    name: str
    inputs: Callable[[int], Sequence[Tensor]]  # on the CPU, by seed; shapes do not depend on it
    call: Callable[..., Sequence[Tensor]]  # the public function on them; takes `backend`


def operators() -> list[str]:
    """Every registered operator, by name."""
    files = (Path(__file__).parent / "operators").glob("*.py")
    return sorted(file.stem for file in files if file.stem != "__init__")


def load(operator: str) -> ModuleType:
    return import_module(f".operators.{operator}", __package__)


def assert_right(small: Small, got: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """`got` is what the reference makes of `inputs`: integers exactly, floats up to rounding."""
    expected = small.call(*inputs, backend="reference")
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other)
