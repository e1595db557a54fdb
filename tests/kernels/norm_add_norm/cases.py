"""What the tests of norm_add_norm feed it, and how far from exact its results may be."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from triselect.kernels.norm_add_norm import reference

from triselect.ops.norm_add_norm import PLACEMENTS, NormAddNorm, norm_add_norm

from ..backends import LAYOUTS, over_backends

EPS = float(np.finfo(np.float32).eps)
Exact = tuple[np.ndarray, np.ndarray]


class Case(NamedTuple):
    y: Tensor
    residual: Tensor
    post_weight: Tensor
    next_weight: Tensor


def laid_out(*case: Tensor, layout: str = "contiguous", **options: Any) -> NormAddNorm:
    """`norm_add_norm` of tensors that are stored so."""
    return norm_add_norm(*(LAYOUTS[layout](x) for x in case), **options)


every_backend = over_backends(laid_out, "norm_add_norm")


def case(
    *shape: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    of_weights: tuple[torch.dtype | None, torch.dtype | None] = (None, None),
    sizes: tuple[float, float] = (1.0, 1.0),
) -> Case:
    """Random rows of a shape, y and residual of these sizes, and weights of any sign."""
    rng = np.random.default_rng(seed)

    def tensor(size: float, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape, np.float32) * size).to(dtype)

    return Case(
        *(tensor(np.float32(size), dtype, *shape) for size in sizes),
        *(tensor(np.float32(1), own or dtype, shape[-1]) for own in of_weights),
    )


def exact(case: Case, eps: float = 1e-5, placement: str = "branch") -> Exact:
    return reference.norm_add_norm(*(x.double().numpy() for x in case), eps, placement)


def half_a_step(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """By how much rounding to `dtype` may change x; float32 counts as all other roundings do."""
    if dtype == torch.float32:
        return np.zeros_like(x)
    info = torch.finfo(dtype)
    return np.maximum(abs(x), info.tiny) * info.eps / 2


def roundings(case: Case, expected: Exact, eps: float, placement: str) -> Exact:
    """What one rounding in float32 of each number and of what it comes from may come to."""
    residual, weight = case.residual.double().numpy(), case.next_weight.double().numpy()
    r, z = expected
    of_r = EPS * (abs(residual) + abs(r - residual) if placement == "branch" else abs(r))
    rms = np.sqrt((r**2).mean(-1, keepdims=True) + eps)
    of_rms = np.sqrt((of_r**2).mean(-1, keepdims=True))
    of_z = EPS * abs(z) + (abs(weight) * of_r + abs(z) * of_rms) / rms
    return tuple(np.maximum(x, np.finfo(np.float32).tiny) for x in (of_r, of_z))


def assert_close(
    got: NormAddNorm,
    case: Case,
    eps: float = 1e-5,
    placement: str = "branch",
    expected: Exact | None = None,
) -> None:
    """`got` is exact but for four roundings in float32 and the one to its dtype."""
    expected = exact(case, eps, placement) if expected is None else expected
    units = roundings(case, expected, eps, placement)
    for mine, right, unit in zip(got, expected, units, strict=True):
        assert (mine.shape, mine.dtype) == (case.y.shape, case.y.dtype)
        if not right.size:
            continue
        off = abs(mine.double().numpy() - right) - half_a_step(right, mine.dtype)
        assert (off <= 4 * unit).all(), (off / unit).max()


__all__ = [
    "EPS",
    "PLACEMENTS",
    "Case",
    "assert_close",
    "case",
    "every_backend",
    "exact",
    "half_a_step",
    "laid_out",
]
