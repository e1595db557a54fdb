"""What the tests of merge feed it: two attentions, and backends."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from triselect.kernels.merge import reference

from triselect.ops import Attention
from triselect.ops.merge import merge

from ..backends import LAYOUTS, over_backends

EPS = float(np.finfo(np.float32).eps)


class Pair(NamedTuple):
    out_a: Tensor
    lse_a: Tensor
    out_b: Tensor
    lse_b: Tensor


def merged(*pair: Tensor, layout: str = "contiguous", **options: Any) -> Attention:
    """`merge` of tensors that are stored in some layout."""
    return merge(*(LAYOUTS[layout](x) for x in pair), **options)


every_backend = over_backends(merged, "merge")


def random_pair(
    *shape: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    empty: float = 0.2,
    spread: float = 3.0,
) -> Pair:
    """Outputs of a shape and their lse; some attended to nothing and have anything for output."""
    rng = np.random.default_rng(seed)
    tensors = []
    for _ in range(2):
        out = torch.from_numpy(rng.standard_normal(shape, np.float32))
        lse = torch.from_numpy(np.asarray(rng.standard_normal(shape[:-1], np.float32))) * spread
        nothing = torch.from_numpy(np.asarray(rng.random(shape[:-1]) < empty))
        lse[nothing] = -torch.inf
        out[nothing] = torch.from_numpy(rng.choice([np.nan, np.inf, 1e30, 0], 1)).float()
        tensors += [out.to(dtype), lse]
    return Pair(*tensors)


def assert_merged(got: Attention, pair: Pair) -> None:
    """`got` is the reference's, but for the rounding of a few float32 operations and of out."""
    with np.errstate(all="ignore"):
        out, lse = reference.merge(*(x.float().numpy() for x in pair))
    assert got.out.dtype == pair.out_a.dtype
    assert got.lse.dtype == torch.float32
    assert (got.out.shape, got.lse.shape) == (out.shape, lse.shape)
    empty = np.asarray(np.isneginf(lse))
    np.testing.assert_array_equal(np.isneginf(got.lse.numpy()), empty)
    assert (got.out[torch.from_numpy(empty)] == 0).all()
    rows = ~empty
    lse_a, lse_b = pair.lse_a.numpy(), pair.lse_b.numpy()
    both = np.stack([np.where(np.isneginf(x), 0, abs(x)) for x in (lse_a, lse_b)])
    # An lse of 8 is known to 8 roundings, and so is its exponential.
    size = 4 + both.max(0) + abs(both[0] - both[1])
    lse_error = abs(got.lse.double().numpy()[rows] - lse[rows])
    assert (lse_error <= 4 * EPS * size[rows]).all()
    parts = [
        np.where(np.isneginf(of)[..., None], 0, abs(x.double().numpy()))
        for x, of in ((pair.out_a, lse_a), (pair.out_b, lse_b))
    ]
    low = 0.0 if got.out.dtype == torch.float32 else torch.finfo(got.out.dtype).eps
    unit = np.maximum(*parts) * 4 * EPS * size[..., None] + low * abs(out) + 1e-7 * (low > 0)
    error = abs(got.out.double().numpy() - out)[rows]
    assert (error <= unit[rows]).all()
