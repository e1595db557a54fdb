"""What the tests of finalize feed it: rows of experts, weights, and a permutation with padding."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from triselect.kernels.finalize import reference

import triselect

from ..backends import LAYOUTS, over_backends

EPS = float(np.finfo(np.float32).eps)


class Case(NamedTuple):
    """The operator's arguments, in their order."""

    rows: Tensor
    weights: Tensor
    slot_of: Tensor
    experts: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    residual2: Tensor | None = None


def laid_out(*case: Tensor | None, layout: str = "contiguous", **options: Any) -> Tensor:
    """`finalize` of arguments that are stored so."""
    store = LAYOUTS[layout]
    stored = (x if x is None else store(x) for x in Case(*case))
    rows, weights, slot_of, experts, bias, *residuals = stored
    return triselect.finalize(
        rows,
        weights,
        permutation_of(slot_of),
        experts=experts,
        bias=bias,
        residuals=[x for x in residuals if x is not None],
        **options,
    )


def permutation_of(slot_of: Tensor) -> triselect.Permutation:
    """With nothing in it that finalize should not look at."""
    return triselect.Permutation(None, slot_of, None)  # type: ignore[arg-type]


every_backend = over_backends(laid_out, "finalize", "finalize_out")


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Few and small, so that sums of their products are exact in float32, and in 16 bits."""
    return rng.integers(-2, 3, shape).astype(np.float32)


def case(
    seed: int = 0,
    *,
    tokens: int = 7,
    top_k: int = 4,
    hidden: int = 24,
    experts: int = 6,
    padding: float = 0.2,
    bias: torch.dtype | None = None,
    residuals: int = 0,
    dtype: torch.dtype = torch.float32,
    data: Any = random,
) -> Case:
    """Some assignments are padding; rows that nobody has are NaN."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, experts, (tokens, top_k))
    ids[rng.random((tokens, top_k)) < padding] = -1
    ids = torch.from_numpy(ids).int()
    slot_of = triselect.permute(ids, experts, backend="reference").slot_of if top_k else ids

    def tensor(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.from_numpy(data(rng, *shape)).to(dtype)

    rows = tensor(dtype, tokens * top_k, hidden)
    rows[int((slot_of >= 0).sum()) :] = torch.nan
    added = [tensor(dtype, tokens, hidden) for _ in range(residuals)] + [None] * (2 - residuals)
    return Case(
        rows,
        tensor(torch.float32, tokens, top_k),
        slot_of,
        None if bias is None else ids,
        None if bias is None else tensor(bias, experts, hidden),
        *added,
    )


def exact(case: Case) -> Tensor:
    """In float64."""
    arrays = (x if x is None else (x.double() if x.is_floating_point() else x) for x in case)
    return torch.from_numpy(reference.finalize(*(x if x is None else x.numpy() for x in arrays)))


def assert_finalized(got: Tensor, case: Case) -> None:
    """`got` is exact but for a float32 rounding of each operation, and one to rows' dtype."""
    expected = exact(case)
    assert got.dtype == case.rows.dtype
    assert got.shape == expected.shape
    sizes = Case(*(x.abs() if x is not None and x.is_floating_point() else x for x in case))
    # A sum of K products of sums, and two more.
    most = (case.weights.shape[1] + 4) * EPS / 2 * exact(sizes)
    low, high = ((expected + sign * most).float().to(got.dtype) for sign in (-1, 1))
    assert ((got >= low) & (got <= high)).all()


def assert_exact(got: Tensor, case: Case) -> None:
    """What the reference makes of it, to the bit, as is right where it is exact in float32."""
    expected = laid_out(*case, backend="reference")
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
