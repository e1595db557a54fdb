"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import re

import pytest
import torch
from triselect.kernels.permute import eager

import triselect
from triselect.ops import operator

from ..backends import assert_bits
from .cases import assert_same_permutation, every_backend

EXPERTS = torch.tensor([[0, 11, 3], [5, 2, -1]])

BAD = {
    "list": ({"experts": [[0]]}, TypeError, "experts must be a tensor, got list"),
    "1d": ({"experts": EXPERTS[0]}, ValueError, "experts must be (tokens, top_k), got shape (3,)"),
    "3d": (
        {"experts": EXPERTS[None]},
        ValueError,
        "experts must be (tokens, top_k), got shape (1, 2, 3)",
    ),
    "float": (
        {"experts": EXPERTS.float()},
        TypeError,
        "experts must be int32 or int64, got torch.float32",
    ),
    "int16": (
        {"experts": EXPERTS.short()},
        TypeError,
        "experts must be int32 or int64, got torch.int16",
    ),
    "bool": ({"experts": EXPERTS > 0}, TypeError, "experts must be int32 or int64, got torch.bool"),
    "no columns": (
        {"experts": EXPERTS[:, :0]},
        ValueError,
        "experts must have at least one column, got none",
    ),
    "too many": (
        {"experts": torch.empty(2**30, 2, dtype=torch.int32, device="meta")},
        ValueError,
        "experts must have at most 2**31 - 1 entries, got 2147483648",
    ),
    "num_experts-0": (
        {"num_experts": 0},
        ValueError,
        "num_experts must be between 1 and 2**31 - 2, got 0",
    ),
    "num_experts-negative": ({"num_experts": -4}, ValueError, "num_experts must be between 1"),
    "num_experts-large": (
        {"num_experts": 2**31 - 1},
        ValueError,
        "num_experts must be between 1 and 2**31 - 2, got 2147483647",
    ),
    "num_experts-float": (
        {"num_experts": 12.0},
        TypeError,
        "num_experts must be an int, got float",
    ),
    "num_experts-bool": ({"num_experts": True}, TypeError, "num_experts must be an int, got bool"),
    "num_experts-none": ({"num_experts": None}, TypeError, "num_experts must be an int, got None"),
    "backend": (
        {"backend": "cuda"},
        ValueError,
        "backend must be one of ('auto', 'reference', 'eager', 'triton', 'native'), got 'cuda'",
    ),
}
# Entries of 64 bits that would be experts, or padding, in 32.
WRAPPING = (2**32, 2**32 + 3, 2**32 - 1, -(2**32), -(2**32) + 1, 2**63 - 1, -(2**63), 2**31)
OUTSIDE = (12, 13, 100, -2, -13, 2**31 - 1, -(2**31))


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message, backend):
    arguments = {"experts": EXPERTS, "num_experts": 12, "backend": backend} | arguments
    with pytest.raises(error, match=re.escape(message)):
        triselect.permute(**arguments)


def spoiled(value: int, dtype: torch.dtype, position: int) -> torch.Tensor:
    experts = (torch.arange(111) % 12).view(37, 3).to(dtype)
    experts.view(-1)[position] = value
    return experts


def on_the_cpu(values: list):
    """Bad values and the dtypes that hold them; first, in the middle, last."""
    cases = [(v, torch.int64) for v in values]
    cases += [(v, torch.int32) for v in values if -(2**31) <= v < 2**31]
    return [spoiled(v, dtype, position) for v, dtype in cases for position in (0, 50, 110)]


@every_backend
@pytest.mark.parametrize("value", OUTSIDE + WRAPPING)
def test_values_out_of_range(backend, value):
    """Refused on the CPU, padding on a device; there `validate` asks for a refusal."""
    message = re.escape("experts must be between -1 and 11 (-1 for padding)") + f".*{value}\\b"
    for experts in on_the_cpu([value]):
        if backend.device == "cpu":
            with pytest.raises(ValueError, match=message):
                backend(experts, 12)
        else:
            padded = experts.where((experts >= 0) & (experts < 12), -1)
            assert_bits(backend(experts, 12), backend(padded, 12))
        with pytest.raises(ValueError, match=message):
            backend(experts, 12, validate=True)


@pytest.mark.parametrize("value", OUTSIDE + WRAPPING)
def test_eager_takes_them_as_padding(value):
    """As it must on a device, where nobody looks at them first."""
    for experts in on_the_cpu([value]):
        got = triselect.Permutation(*eager.permute(experts, 12))
        assert_same_permutation(got, experts, 12)
        assert got.offsets[-1] == experts.numel() - 1


def test_validate_looks_at_the_values_of_a_device(monkeypatch):
    looked_at = []
    monkeypatch.setattr(operator, "must_be_in_range", lambda *args: looked_at.append(args[0]))
    experts = EXPERTS.to("meta")
    triselect.permute(experts, 12)
    assert looked_at == []
    triselect.permute(experts, 12, validate=True)
    assert looked_at == ["experts"]


@pytest.mark.parametrize("value", OUTSIDE + WRAPPING)
def test_the_operator_itself_refuses_them_too(value):
    """Called without the public function, as torch.compile does: it raises, and nothing breaks."""
    for experts in on_the_cpu([value]):
        with pytest.raises(ValueError, match="experts must be between -1 and 11"):
            torch.ops.triselect.permute.default(experts, 12)
        with pytest.raises(ValueError, match="experts must be between -1 and 11"):
            torch.ops.triselect.permute.backend(experts, 12, "auto")


@every_backend
def test_the_largest_and_the_smallest_allowed(backend):
    for value in (-1, 0, 11):
        for experts in on_the_cpu([value]):
            backend(experts, 12)


def test_a_bad_value_is_named_by_a_compiled_function_too():
    compiled = torch.compile(
        lambda experts: triselect.permute(experts, 12), backend="eager", fullgraph=True
    )
    with pytest.raises(ValueError, match="experts must be between -1 and 11"):
        compiled(torch.tensor([[12]]))


@every_backend
def test_validate_does_not_change_what_is_returned(backend):
    assert_bits(backend(EXPERTS, 12), backend(EXPERTS, 12, validate=True))
