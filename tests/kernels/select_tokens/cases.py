"""What the tests of select_tokens feed it: scores that tie in every way, and backends."""

import numpy as np
import pytest
import torch
from torch import Tensor
from triselect.kernels.select_tokens import reference

from triselect.ops import select_tokens

from ..backends import over_backends, stored

every_backend = over_backends(stored(select_tokens), "select_tokens")

VALUES = (0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45, 2.0)


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def at_the_boundary(rng: np.random.Generator, n: int) -> np.ndarray:
    """A few good ones, a third that tie, and the rest below: the k-th is one of many equals."""
    kind = rng.random(n)
    return np.where(kind < 0.01, 5 + kind, np.where(kind < 0.35, 0.5, -1 - kind))


def one_coarse_bin(rng: np.random.Generator, n: int) -> np.ndarray:
    """They differ in the last bits of a float32 alone, and are one number in 16 bits."""
    return 1 + rng.integers(0, 200, n) * 2.0**-23


def with_nan(rng: np.random.Generator, n: int) -> np.ndarray:
    x = normal(rng, n)
    x[rng.random(n) < 0.3] = np.nan
    x[rng.random(n) < 0.1] = -np.nan
    x[rng.random(n) < 0.1] = -np.inf
    return x


def all_powers(rng: np.random.Generator, n: int) -> np.ndarray:
    """From zero over subnormal numbers to the largest, of both signs."""
    return np.ldexp(rng.choice([-1.0, 1.0], n), rng.integers(-155, 128, n))


def in_clusters(rng: np.random.Generator, n: int) -> np.ndarray:
    return normal(rng, n // 30 + 1).repeat(30)[:n] + 0.1 * normal(rng, n)


# What goes wrong elsewhere: candidates that overflow, ties taken twice or not at all.
KINDS = {
    "normal": normal,
    "all equal": lambda rng, n: np.full(n, -3.5),
    "plateaus": lambda rng, n: rng.integers(0, 30, n // 7 + 1).repeat(7)[:n] * 0.25,
    "at the boundary": at_the_boundary,
    "one coarse bin": one_coarse_bin,
    "few values": lambda rng, n: rng.choice(VALUES, n),
    "zeros": lambda rng, n: rng.choice([0.0, -0.0], n),
    "infinities": lambda rng, n: rng.choice([np.inf, -np.inf, 1.0], n),
    "nan": with_nan,
    "nothing but nan": lambda rng, n: np.full(n, np.nan),
    "nothing but -inf": lambda rng, n: np.full(n, -np.inf),
    "subnormal": lambda rng, n: rng.integers(-9, 9, n) * 1e-45,
    "all powers": all_powers,
    "ascending": lambda rng, n: np.sort(normal(rng, n)),
    "descending": lambda rng, n: -np.sort(normal(rng, n)),
    "clusters": in_clusters,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def scores_of(
    rng: np.random.Generator,
    rows: int,
    tokens: int,
    kind: str = "normal",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    x = np.array([KINDS[kind](rng, tokens) for _ in range(rows)], np.float32)
    return torch.from_numpy(x.reshape(rows, tokens)).to(dtype)


def ranges_of(rng: np.random.Generator, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """A start and an end for each row, sometimes the same."""
    start, end = np.sort(rng.integers(0, tokens + 1, (2, rows)), axis=0)
    return torch.from_numpy(start), torch.from_numpy(end)


def assert_selects_as_the_reference(
    got: Tensor,
    scores: Tensor,
    k: int,
    proximity: int = 0,
    start: Tensor | None = None,
    end: Tensor | None = None,
) -> None:
    expected = reference.select_tokens(
        scores.float().numpy(), k, proximity, *(b if b is None else b.numpy() for b in (start, end))
    )
    assert got.dtype == torch.int32
    np.testing.assert_array_equal(got, expected)
