"""What the tests of permute feed it: assignments with every kind of skew, and backends."""

import numpy as np
import pytest
import torch
from torch import Tensor
from triselect.kernels.permute import reference

import triselect

from ..backends import over_backends, stored

every_backend = over_backends(stored(triselect.permute), "permute")

SKEWS = ("uniform", "skewed", "one expert", "sorted", "descending")


def assignments(
    rng: np.random.Generator,
    tokens: int,
    k: int,
    num_experts: int,
    skew: str = "uniform",
    padding: float = 0.0,
    dtype: torch.dtype = torch.int32,
) -> Tensor:
    """Experts ``(T, K)``, of which a share of `padding` is -1."""
    u = rng.random(tokens * k)
    match skew:
        case "skewed":  # half of them go to the first hundredth of the experts
            u = u**7
        case "one expert":
            u[:] = rng.random()
        case "sorted":
            u.sort()
        case "descending":
            u = -np.sort(-u)
    experts = np.floor(u * num_experts).astype(np.int64)
    experts[rng.random(tokens * k) < padding] = -1
    return torch.from_numpy(experts.reshape(tokens, k)).to(dtype)


every_case = pytest.mark.parametrize(
    ("tokens", "k", "num_experts", "skew", "padding"),
    [
        (0, 8, 64, "uniform", 0.0),
        (1, 1, 1, "uniform", 0.0),
        (1, 8, 64, "uniform", 0.0),
        (1, 3, 7, "uniform", 1.0),
        (15, 2, 5, "uniform", 0.5),
        (16, 8, 64, "uniform", 0.0),
        (17, 8, 80, "skewed", 0.1),
        (64, 8, 256, "uniform", 0.0),
        (100, 1, 1000, "uniform", 0.2),
        (129, 6, 160, "skewed", 0.0),
        (333, 3, 33, "one expert", 0.1),
        (500, 4, 12, "sorted", 0.3),
        (500, 4, 12, "descending", 0.0),
        (1000, 22, 512, "uniform", 0.9),
        (4099, 8, 64, "skewed", 0.01),
        (4096, 2, 1, "uniform", 0.5),
    ],
)


def assert_same_permutation(got: triselect.Permutation, experts: Tensor, num_experts: int) -> None:
    """`got` is the reference's permutation of `experts`, to the last integer."""
    expected = reference.permute(experts.numpy(), num_experts)
    for name, mine, theirs in zip(got._fields, got, expected, strict=True):
        assert mine.dtype == torch.int32
        np.testing.assert_array_equal(mine, theirs, err_msg=name)
