"""The hash is MurmurHash3's finaliser, spreads evenly, and differs from seed to seed."""

import pytest
import torch
from triselect.kernels.table_route.reference import fmix32, hashed

from .cases import Call, every_backend

MASK = 2**32 - 1
LARGEST = 2**31 - 1


def murmur3_finaliser(h: int) -> int:
    """fmix32 of Appleby's MurmurHash3, in integers that do not overflow."""
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def test_published_values():
    """The 32-bit hash of an empty string is the finaliser of its seed alone."""
    for seed, published in {0: 0, 1: 0x514E28B7, MASK: 0x81F16F39}.items():
        assert murmur3_finaliser(seed) == published


def test_the_reference_computes_it():
    import numpy as np

    values = [0, 1, 2, 12345, 2**16, LARGEST, 2**31, MASK]
    expected = [murmur3_finaliser(v) for v in values]
    assert fmix32(np.array(values, np.uint32)).tolist() == expected
    expected = [murmur3_finaliser(v ^ murmur3_finaliser(7)) for v in values[:6]]
    assert hashed(np.array(values[:6]), 7).tolist() == expected


@every_backend
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("size", [LARGEST, 2**30, 2**16, 10**9 + 7, 60])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**31, MASK])
def test_every_backend_computes_it(backend, size, seed, dtype):
    """Modulo many experts there is no bit of it that does not show."""
    ids = [0, 1, 2, 3, 255, 65536, 123456789, 2**30, LARGEST - 1, LARGEST]
    first = [murmur3_finaliser(v ^ murmur3_finaliser(seed)) % size for v in ids]
    step = size // 3
    expected = [[(h + slot * step) % size for slot in range(3)] for h in first]
    call = Call(torch.tensor(ids, dtype=dtype), None, size, top_k=3, seed=seed)
    assert backend(*call).experts.tolist() == expected


def chi_square(counts: torch.Tensor, expected: float) -> float:
    return ((counts - expected) ** 2 / expected).sum().item()


def unlikely(degrees: int) -> float:
    """Five standard deviations above the mean of a chi-square of many degrees of freedom."""
    return degrees + 5 * (2 * degrees) ** 0.5


@every_backend
@pytest.mark.parametrize("experts", [64, 60, 640])
@pytest.mark.parametrize("seed", [0, 7])
def test_experts_are_used_evenly(backend, experts, seed):
    """Of consecutive ids, as tokenisers number them. The test has a floor, too: it may fail."""
    ids = torch.arange(100 * experts)
    counts = backend(*Call(ids, None, experts, seed=seed)).experts.flatten().bincount()
    assert counts.shape == (experts,)
    assert chi_square(counts, 100) < unlikely(experts - 1)
    lopsided = torch.where(torch.arange(experts) % 2 == 0, 120.0, 80.0)
    assert chi_square(lopsided, 100) > unlikely(experts - 1)


@every_backend
@pytest.mark.parametrize("seeds", [(0, 1), (1, 2), (0, MASK), (5, 6)])
def test_seeds_are_independent(backend, seeds):
    """All pairs of experts that two layers give a token come up equally often."""
    experts = 16
    ids = torch.arange(100 * experts**2)
    first, second = (
        backend(*Call(ids, None, experts, seed=seed)).experts.flatten() for seed in seeds
    )
    pairs = (first * experts + second).bincount(minlength=experts**2)
    assert chi_square(pairs, 100) < unlikely(experts**2 - 1)


@every_backend
def test_domains_share_the_hash_and_not_the_experts(backend):
    ids = torch.arange(30)
    call = Call(ids, None, 24, torch.zeros(30, dtype=torch.int64), num_expert_group=3, top_k=2)
    zero = backend(*call).experts
    assert (zero < 8).all()
    for domain in (1, 2):
        moved = backend(*call._replace(domains=torch.full((30,), domain))).experts
        assert torch.equal(moved, zero + 8 * domain)
