"""`compress`: queries or keys of all heads as one short vector per token."""

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.ops import backends, cache, operator


class Compressed(NamedTuple):
    """``values (..., E)`` and, where they have 8 bits, ``scale (...) float32`` to multiply with."""

    values: Tensor
    scale: Tensor | None


def compress(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    out: Compressed | None = None,
    slots: Tensor | None = None,
    validate: bool = False,
    backend: str = "auto",
) -> Compressed:
    """Compress the queries or the keys of tokens, all heads together, to E numbers each.

    Parameters
    ----------
    x : ``(..., H, D)`` float32, float16 or bfloat16
        Queries of H heads, or keys (H = G).
    weight : ``(E, G * D)`` float32, float16 or bfloat16
        A compressor's map for queries or for keys (`triselect.esa.calibrate`); G divides H.
    bias : ``(E,)`` of the weight's dtype, optional
    dtype : optional
        Of the values: float32, float16, bfloat16, int8 or float8_e4m3fn; x's by default. Those of
        8 bits get a scale per token.
    out : Compressed, optional
        Where to write, in place, such as a cache's compressed keys: values ``(..., E)`` and scale
        ``(...)``, both contiguous. It settles the dtype.
    slots : ``(...)`` int32 or int64, optional
        For every token of x, its row among those of `out`, counted through; -1 writes nothing. No
        row twice. Without it, `out` has as many rows as x has tokens.
    validate : bool
        Look at the values of the slots on a device too, which waits for it. On the CPU they are
        always looked at.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    Compressed
        `out` where it is given.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name; a compressor for another model by both shapes.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    ESA (arXiv 2502.14477), equation 5, ``weight @ x + bias``, in float32. Query heads that share a
    key are added up first, which changes no score and leaves a G / H of the work. 8 bits:
    ``scale = max |y| / 127`` (int8) or ``/ 448`` (float8), ``values = y / scale`` rounded to
    nearest, ties to even. A vector that is not finite has scale NaN, which scores -inf.

    Examples
    --------
    >>> x = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])  # one token, four heads of one number
    >>> compress(x, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])).values
    tensor([[ 3.,  7., 10.]])
    """
    _validate(x, weight, bias)
    tokens = x.shape[:-2]
    if out is None:
        dtype = x.dtype if dtype is None else dtype
        if dtype not in cache.FLOATS + cache.EIGHT_BITS:
            raise TypeError(f"dtype must be a float of up to 32 bits, or int8, got {dtype}")
        if slots is not None:
            raise ValueError("slots must come with out, in which they are rows")
        values = x.new_empty((*tokens, weight.shape[0]), dtype=dtype)
        eight = dtype in cache.EIGHT_BITS
        out = Compressed(values, x.new_empty(tokens, dtype=torch.float32) if eight else None)
    else:
        _validate_out(x, weight, dtype, Compressed(*out), slots)
    args = (x, weight, bias, slots, *out)
    if validate:
        _check(*args)
    if backend == "auto":
        _compress.auto(*args)
    else:
        backends.must_be_known(backend)
        _compress.named(*args, backend)
    return Compressed(*out)


def _validate(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dim() < 2 or not x.shape[-1]:
        raise ValueError(f"x must be (..., heads, dim), got shape {tuple(x.shape)}")
    cache.must_be_tensor("weight", weight, "(compressed, groups * dim)", x.device)
    for name, value in (("x", x), ("weight", weight)):
        if value.dtype not in cache.FLOATS:
            raise TypeError(f"{name} must be float32, float16 or bfloat16, got {value.dtype}")
    heads, dim = x.shape[-2:]
    groups = weight.shape[1] // dim
    if weight.shape[1] % dim or not groups or heads % groups or not weight.shape[0]:
        raise ValueError(
            f"weight must be (compressed, groups * {dim}) with groups that divide the {heads} "
            f"heads of x, got weight {tuple(weight.shape)} for x {tuple(x.shape)}"
        )
    if bias is not None:
        cache.must_be_tensor("bias", bias, "(compressed,)", x.device)
        cache.must_have_dtype("bias", bias, weight.dtype)
        cache.must_have_shape("bias", bias, weight.shape[:1], "as weight")


def _validate_out(
    x: Tensor, weight: Tensor, dtype: torch.dtype | None, out: Compressed, slots: Tensor | None
) -> None:
    values, scale = out
    if not isinstance(values, Tensor):
        raise TypeError(f"out.values must be a tensor, got {type(values).__name__}")
    if values.dim() < 1 or values.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"out.values must be (..., {weight.shape[0]}) for weight {tuple(weight.shape)}, "
            f"got {tuple(values.shape)}"
        )
    if values.dtype not in cache.FLOATS + cache.EIGHT_BITS or dtype not in (None, values.dtype):
        raise TypeError(f"out.values has dtype {values.dtype}, wanted is {dtype or 'a float'}")
    eight = values.dtype in cache.EIGHT_BITS
    if eight != (scale is not None):
        raise ValueError(f"out.scale must be {'a tensor' if eight else 'None'} for {values.dtype}")
    pairs: list[tuple[str, Any, Any]] = [("out.values", values, values.shape)]
    if scale is not None:
        pairs.append(("out.scale", scale, values.shape[:-1]))
        cache.must_have_dtype("out.scale", scale, torch.float32)
    for name, value, shape in pairs:
        cache.must_have_shape(name, value, shape, "a scale per row")
        if value.device != x.device:
            raise ValueError(f"{name} must be on {x.device} as x, got {value.device}")
        if not value.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {value.stride()}")
    rows, tokens = prod(values.shape[:-1]), prod(x.shape[:-2])
    if slots is None:
        if rows != tokens:
            raise ValueError(f"slots must say which of {rows} rows the {tokens} tokens go to")
        return
    if not isinstance(slots, Tensor):
        raise TypeError(f"slots must be a tensor, got {type(slots).__name__}")
    cache.must_be_integers("slots", slots)
    cache.must_have_shape("slots", slots, x.shape[:-2], "one per token of x")
    if slots.device != x.device:
        raise ValueError(f"slots must be on {x.device} as x, got {slots.device}")


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slots: Tensor | None,
    values: Tensor,
    scale: Tensor | None,
) -> None:
    if slots is not None:
        last = prod(values.shape[:-1]) - 1
        operator.must_be_in_range("slots", slots, -1, last, "-1 writes nothing")


_compress = operator.define(
    "compress",
    "Tensor x, Tensor weight, Tensor? bias, Tensor? slots, Tensor(a!) values, Tensor(b!)? scale",
    "()",
    lambda *args: None,
    check=_check,
    mutated=(4, 5),
)
