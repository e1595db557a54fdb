"""Every backend permutes as the reference does, whatever the sizes, the skew or the layout."""

import numpy as np
import pytest
import torch

from ..backends import LAYOUTS, assert_bits, every_index_dtype
from .cases import assert_same_permutation, assignments, every_backend, every_case


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@every_backend
@every_index_dtype
@every_case
def test_shapes(backend, tokens, k, num_experts, skew, padding, dtype):
    experts = assignments(rng(), tokens, k, num_experts, skew, padding, dtype)
    assert_same_permutation(backend(experts, num_experts), experts, num_experts)


@every_backend
@every_index_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k", [1, 8])
def test_layouts(backend, layout, k, dtype):
    experts = assignments(rng(), 45, k, 19, padding=0.1, dtype=dtype)
    got = backend(experts, 19, layout=layout)
    experts = LAYOUTS[layout](experts).contiguous()
    assert_same_permutation(got, experts, 19)
    assert_bits(got, backend(experts, 19))


@every_backend
@pytest.mark.parametrize(
    ("num_experts", "skew", "dtype"),
    [(64, "uniform", torch.int32), (64, "one expert", torch.int32), (1000, "skewed", torch.int64)],
)
def test_a_long_prompt(backend, skew, num_experts, dtype):
    """131072 assignments: several threads, several blocks, exact all the same."""
    experts = assignments(rng(), 16384, 8, num_experts, skew, 0.01, dtype)
    got = backend(experts, num_experts)
    assert_same_permutation(got, experts, num_experts)
    assert_bits(got, backend(experts.clone(), num_experts))


@every_backend
@pytest.mark.slow
@pytest.mark.parametrize("num_experts", [4096, 100_000])
def test_many_experts(backend, num_experts):
    """More experts than assignments, and most of them without any."""
    experts = assignments(rng(), 3000, 6, num_experts, "skewed")
    assert_same_permutation(backend(experts, num_experts), experts, num_experts)


@every_backend
def test_experts_of_every_token_the_same(backend):
    """A stride of zero in both directions."""
    experts = torch.tensor([[5]]).expand(70, 3)
    assert_same_permutation(backend(experts, 8), experts, 8)
