"""Are these the scores that the float64 reference means?

What is infinite is compared exactly. Errors of the rest are counted in float32 roundings of the
largest sum of |q k| that goes into a score, and may be as large as those of plain float32 PyTorch,
and two roundings more.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from triselect.kernels.token_scores import reference

EPS = float(np.finfo(np.float32).eps)
NAMES = ("k_scale", "start", "end", "num_queries", "block_table")
FEW = 32  # scores that a mean of errors can do with


def arrays(q: Tensor, k: Tensor, options: dict[str, Any]) -> list[Any]:
    """The arguments of the reference."""
    values = (q, k, *(options.get(name) for name in NAMES))
    return [
        None if v is None else (v.float() if v.is_floating_point() else v).numpy() for v in values
    ]


def expected_scores(q: Tensor, k: Tensor, options: dict[str, Any]) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return reference.token_scores(*arrays(q, k, options))


def folded(q: Tensor, groups: int, in_float32: bool) -> Tensor:
    """Queries added up over the heads that share a key, ``(B, C, G * D)`` float32."""
    q = q.unflatten(2, (groups, -1))
    return (q.float().sum(3) if in_float32 else q.sum(3).float()).flatten(2)


def plain(q: Tensor, k: Tensor, options: dict[str, Any], in_float32: bool) -> np.ndarray:
    """Scores as anyone would compute them in float32, queries times tokens in memory."""
    if q.dim() == 4:
        q = folded(q, k.shape[2], in_float32)
        k = k.flatten(2)
    args = arrays(q, k, options)
    k, scale, table = args[1], args[2], args[6]
    if scale is not None:
        k = k * scale[..., None]
    if table is not None:
        k = np.where((table >= 0)[..., None, None], k[table], np.nan).reshape(
            len(q), -1, k.shape[-1]
        )
    scores = []
    for b, (start, end, number) in enumerate(zip(*ranges(q, k, options), strict=True)):
        f = q[b, :number].float() @ torch.from_numpy(k[b]).T
        f[:, :start] = f[:, end:] = -torch.inf
        f = f.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        if number > 1 and f.shape[1]:
            best = f.amax(1, keepdim=True)
            f = torch.where(f == -torch.inf, f, torch.where(f == best, 0, f - best))
        scores.append(f.amax(0) if number else f.new_full(f.shape[1:], -torch.inf))
    return torch.stack(scores).numpy()


def ranges(q: Tensor, k: np.ndarray, options: dict[str, Any]) -> list[list[int]]:
    whole = {"start": 0, "end": k.shape[1], "num_queries": q.shape[1]}
    return [
        [value] * len(q) if options.get(name) is None else options[name].tolist()
        for name, value in whole.items()
    ]


def roundings(q: Tensor, k: Tensor, options: dict[str, Any]) -> np.ndarray:
    """What one rounding of the sums that go into each score may be, ``(B, N)``."""
    if q.dim() == 4:
        q, k = q.abs().unflatten(2, (k.shape[2], -1)).float().sum(3).flatten(2), k.flatten(2)
    q, k, scale, *_, table = arrays(q, k, options)
    q, k = (np.nan_to_num(abs(x.astype(np.float64)), posinf=0) for x in (q, k))
    if scale is not None:
        k = k * np.nan_to_num(abs(scale), posinf=0)[..., None]
    if table is not None:
        k = k[table].reshape(len(q), -1, k.shape[-1])
    size = q @ k.transpose(0, 2, 1)
    return EPS * (size + size.max(2, keepdims=True, initial=0)).max(1, initial=0)


def assert_scores(
    got: Tensor, q: Tensor, k: Tensor, options: dict[str, Any], *, in_float32: bool = True
) -> None:
    """`got` is what the reference makes of the arguments; heads were added up `in_float32`."""
    assert got.dtype == torch.float32
    expected = expected_scores(q, k, options)
    assert got.shape == expected.shape
    mine = got.numpy()
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(mine[~finite], expected[~finite])
    assert np.isfinite(mine[finite]).all()
    if not finite.any():
        return
    unit = np.maximum(roundings(q, k, options), np.finfo(np.float32).tiny)[finite]
    expected = expected[finite]
    error = abs(mine[finite] - expected) / unit
    theirs = abs(plain(q, k, options, in_float32)[finite] - expected) / unit
    assert error.max() <= theirs.max() + 2
    if error.size >= FEW:
        assert error.mean() <= theirs.mean() + 0.25


def assert_exact(got: Tensor, q: Tensor, k: Tensor, options: dict[str, Any]) -> None:
    """To the last bit, as is right for integers; -0 is 0."""
    np.testing.assert_array_equal(got.numpy(), expected_scores(q, k, options))
