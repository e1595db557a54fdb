"""What the tests of compress feed it: heads of tokens, a compressor, and what came out."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from triselect.kernels.compress import reference

from triselect.ops.compress import Compressed, compress

from ..backends import LAYOUTS, over_backends

EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)
VALUES = (torch.float32, torch.float16, torch.bfloat16, *EIGHT_BITS)
EPS = float(np.finfo(np.float32).eps)
FEW = 32  # numbers that a mean of errors can do with


def laid_out(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    layout: str = "contiguous",
    **options: Any,
) -> Compressed:
    """`compress` of tokens and a compressor that are stored so."""
    if layout == "heads first":  # as transformers has them
        x = x.transpose(-3, -2).contiguous().transpose(-3, -2) if x.dim() > 2 else x
        return compress(x, weight, bias, **options)
    store = LAYOUTS[layout]
    return compress(store(x), store(weight), None if bias is None else store(bias), **options)


every_backend = over_backends(laid_out, "compress")


class Case(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Few and small, so that sums of their products are exact in float32."""
    return rng.integers(-2, 3, shape).astype(np.float32)


def case(
    seed: int = 0,
    *,
    tokens: tuple[int, ...] = (6,),
    heads: int = 4,
    groups: int = 2,
    dim: int = 8,
    numbers: int = 12,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
    of_weight: torch.dtype | None = None,
    data: Any = random,
) -> Case:
    rng = np.random.default_rng(seed)

    def tensor(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.from_numpy(data(rng, *shape)).to(dtype)

    of_weight = of_weight or dtype
    return Case(
        tensor(dtype, *tokens, heads, dim),
        tensor(of_weight, numbers, groups * dim),
        tensor(of_weight, numbers) if bias else None,
    )


def exact(case: Case) -> np.ndarray:
    """y in float64, ``(..., E)``."""
    x, weight, bias = (None if t is None else t.double().numpy() for t in case)
    y = np.zeros((*x.shape[:-2], len(weight)))
    return reference.compress(x, weight, bias, None, y, None)[0]


def folded(case: Case, in_float32: bool) -> Tensor:
    """Heads of a group added up, ``(..., G * D)`` float32."""
    x = case.x.unflatten(-2, (case.weight.shape[1] // case.x.shape[-1], -1))
    return (x.float().sum(-2) if in_float32 else x.sum(-2).float()).flatten(-2)


def plain(case: Case, in_float32: bool) -> np.ndarray:
    """y as anyone would compute it in float32."""
    bias = None if case.bias is None else case.bias.float()
    return torch.nn.functional.linear(folded(case, in_float32), case.weight.float(), bias).numpy()


def roundings(case: Case) -> np.ndarray:
    """What one rounding of the sums that go into each number may be."""
    sizes = Case(*(None if t is None else t.double().abs() for t in case))
    return np.maximum(EPS * exact(sizes), np.finfo(np.float32).tiny)


def steps(y: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Distance of the numbers around y that a float `dtype` has."""
    digits, least = {
        torch.float32: (23, -126),
        torch.float16: (10, -14),
        torch.bfloat16: (7, -126),
        torch.float8_e4m3fn: (3, -6),
    }[dtype]
    exponent = np.frexp(np.maximum(abs(y), np.finfo(np.float64).tiny))[1] - 1
    return 2.0 ** (np.maximum(exponent, least) - digits)


def assert_compressed(got: Compressed, case: Case, *, in_float32: bool = True) -> None:
    """`got` is y, no worse than plain float32 PyTorch makes it, once rounded to its dtype.

    Errors are counted in float32 roundings of the largest sums, beyond half a step of the dtype.
    """
    y = exact(case)
    values, scale = got
    assert values.shape == y.shape
    if not y.size:
        return
    unit = roundings(case)
    theirs = abs(plain(case, in_float32) - y) / unit
    if scale is None:
        assert values.dtype not in EIGHT_BITS
        error = abs(values.double().numpy() - y) - steps(y, values.dtype) / 2
    else:
        limit = 127 if values.dtype is torch.int8 else 448
        assert (scale.shape, scale.dtype) == (y.shape[:-1], torch.float32)
        s = scale.double().numpy()[..., None]
        largest = abs(y).max(-1, keepdims=True)
        slack = unit.max(-1, keepdims=True) * (theirs.max() + 2) + EPS * largest
        assert (abs(s * limit - largest) <= slack).all()
        whole = values.dtype is torch.int8
        step = 1 if whole else steps(y / np.where(s > 0, s, 1), values.dtype)
        error = abs(values.double().numpy() * s - y) - s * step / 2
        unit = unit + EPS * abs(y)  # the scale is rounded too, which is half of one
    error = np.maximum(error, 0) / unit
    assert error.max() <= theirs.max() + 2
    if error.size >= FEW:
        assert error.mean() <= theirs.mean() + 0.25


def assert_exact(got: Compressed, case: Case) -> None:
    """What the reference makes of it to the last bit, as is right where y is exact in float32.

    Only what y / scale in float32 takes for the middle of two values of 8 bits may go either way.
    """
    values, scale = got
    expected = compress(*case, dtype=values.dtype, backend="reference")
    mine, theirs = (t.double().numpy() for t in (values, expected.values))
    if scale is None:
        np.testing.assert_array_equal(mine, theirs)
        return
    torch.testing.assert_close(scale, expected.scale, rtol=0, atol=0)
    other = mine != theirs
    if other.any():
        quotient = (exact(case) / scale.double().numpy()[..., None])[other]
        middle = (mine + theirs)[other] / 2
        assert (abs(quotient - middle) <= EPS * abs(middle)).all()
        step = abs(mine - theirs)[other]
        assert (step <= (1 if values.dtype is torch.int8 else steps(middle, values.dtype))).all()
