"""`merge`: two attentions over disjoint tokens as one."""

import torch
from torch import Tensor

from triselect.ops import backends, cache, operator
from triselect.ops.gather_attention import Attention


def merge(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, *, backend: str = "auto"
) -> Attention:
    """Merge two attentions of the same queries over disjoint tokens.

    Parameters
    ----------
    out_a, out_b : ``(..., D)`` float32, float16 or bfloat16
        Outputs, of one shape and dtype.
    lse_a, lse_b : ``(...)`` float32
        Logarithms of the sums of exponentials: natural ones.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    Attention
        ``out (..., D)`` of the outputs' dtype and ``lse (...) float32``: what one softmax over the
        tokens of both gives. An attention over nothing has an lse of -inf and leaves the other as
        it is.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    ``lse = log(exp(lse_a) + exp(lse_b))`` and ``out`` the mean of both, weighed by ``exp(lse_a -
    lse)`` and ``exp(lse_b - lse)``, in float32. ESA (arXiv 2502.14477), algorithm 1. Associative
    and commutative, up to rounding.

    Examples
    --------
    >>> one, two = torch.tensor([[1.0]]), torch.tensor([[3.0]])
    >>> merge(one, torch.zeros(1), two, torch.zeros(1)).out
    tensor([[2.]])
    """
    _validate(out_a, lse_a, out_b, lse_b)
    args = (out_a, lse_a, out_b, lse_b)
    if backend == "auto":
        return Attention(*_merge.auto(*args))
    backends.must_be_known(backend)
    return Attention(*_merge.named(*args, backend))


def _validate(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> None:
    tensors = {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if value.device != out_a.device:
            raise ValueError(f"{name} must be on {out_a.device} as out_a, got {value.device}")
    if out_a.dtype not in cache.FLOATS:
        raise TypeError(f"out_a must be float32, float16 or bfloat16, got {out_a.dtype}")
    if out_a.dim() < 1:
        raise ValueError("out_a must be (..., dim), got a number")
    cache.must_have_dtype("out_b", out_b, out_a.dtype)
    cache.must_have_shape("out_b", out_b, out_a.shape, "as out_a")
    for name in ("lse_a", "lse_b"):
        cache.must_have_dtype(name, tensors[name], torch.float32)
        cache.must_have_shape(name, tensors[name], out_a.shape[:-1], "as out_a")


def _empty(out_a: Tensor, lse_a: Tensor, *args: Tensor) -> tuple[Tensor, Tensor]:
    return out_a.new_empty(out_a.shape), lse_a.new_empty(lse_a.shape)


_merge = operator.define(
    "merge",
    "Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b",
    "(Tensor out, Tensor lse)",
    _empty,
)
