"""`norm_add_norm`: post-norm, addition to the residual, and the next norm in one."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.ops import backends, cache, operator
from triselect.ops.backends import BackendUnavailable

PLACEMENTS = ("branch", "sum")
NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
LARGEST = torch.finfo(torch.float32).max


class NormAddNorm(NamedTuple):
    """``residual (..., H)``, what the next sub-layer is added to, and ``normed (..., H)``, what it
    reads."""

    residual: Tensor
    normed: Tensor


def norm_add_norm(
    y: Tensor,
    residual: Tensor,
    post_weight: Tensor,
    next_weight: Tensor,
    *,
    eps: float = 1e-5,
    placement: str = "branch",
    backend: str = "auto",
) -> NormAddNorm:
    """Norm what a sub-layer gives, add it to the residual, and norm that for the next sub-layer.

    Parameters
    ----------
    y : ``(..., H)`` float32, float16 or bfloat16
        What attention or the MLP gives, any strides.
    residual : ``(..., H)`` of y's dtype
        What it is added to, of y's shape.
    post_weight : ``(H,)`` of y's dtype or float32
        Weight of the norm behind the sub-layer.
    next_weight : ``(H,)`` of y's dtype or float32
        Weight of the norm before the next one.
    eps : float
        Added to the mean of the squares, in both norms.
    placement : "branch" or "sum"
        What the post-norm is of: of y alone, as in the depth-scaled sandwich norm, or of the sum of
        y and the residual.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device, and eager where a gradient is
        needed.

    Returns
    -------
    NormAddNorm
        ``residual (..., H)`` and ``normed (..., H)``, both of y's dtype.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name.
    BackendUnavailable
        A named backend that cannot run here, or one other than "eager" where a gradient is needed.

    Notes
    -----
    With ``N(v, w) = w * v / sqrt(mean(v**2) + eps)``, the residual is ``residual + N(y,
    post_weight)`` for "branch" (Pangu Ultra, arXiv 2504.07866, and vLLM) and
    ``N(residual + y, post_weight)`` for "sum" (transformers-style code of openPangu-R-72B);
    `normed` is N of it with `next_weight`. Float32 inside: `normed` is of the residual before that
    is rounded, and each result is rounded once. A row that holds infinities or NaN, or squares
    beyond float32, spoils itself and no other. `triselect.moe.post_norm_init` says what
    `post_weight` begins with, `triselect.moe.absorb_post_norm` does without it after training.

    Examples
    --------
    >>> ones = torch.ones(2)
    >>> norm_add_norm(torch.tensor([[3.0, -3.0]]), torch.tensor([[1.0, 2.0]]), ones, ones, eps=0.0)
    NormAddNorm(residual=tensor([[2., 1.]]), normed=tensor([[1.2649, 0.6325]]))
    """
    args = (y, residual, post_weight, next_weight, eps, placement)
    _validate(*args)
    if torch.is_grad_enabled() and (
        y.requires_grad
        or residual.requires_grad
        or post_weight.requires_grad
        or next_weight.requires_grad
    ):
        return NormAddNorm(*_differentiable(args, backend))
    if backend == "auto":
        return NormAddNorm(*_norm_add_norm.auto(*args))
    backends.must_be_known(backend)
    return NormAddNorm(*_norm_add_norm.named(*args, backend))


def _differentiable(args: tuple[Any, ...], backend: str) -> tuple[Tensor, Tensor]:
    """The eager kernel itself, whose operators PyTorch differentiates."""
    backends.must_be_known(backend)
    if backend not in ("auto", "eager"):
        raise BackendUnavailable(
            f"backend {backend!r} has no gradient of norm_add_norm: use 'auto' or 'eager', or "
            "torch.no_grad() where none is needed"
        )
    from triselect.kernels.norm_add_norm import eager

    found: tuple[Tensor, Tensor] = eager.norm_add_norm(*args)
    return found


def _validate(
    y: Tensor,
    residual: Tensor,
    post_weight: Tensor,
    next_weight: Tensor,
    eps: float,
    placement: str,
) -> None:
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a tensor, got {type(y).__name__}")
    shape, dtype, device = y.shape, y.dtype, y.device
    if not shape or not shape[-1]:
        raise ValueError(f"y must be (..., hidden), got shape {tuple(shape)}")
    if dtype not in cache.FLOATS:
        raise TypeError(f"y must be float32, float16 or bfloat16, got {dtype}")
    if not isinstance(residual, Tensor):
        raise TypeError(f"residual must be a tensor, got {type(residual).__name__}")
    if residual.shape != shape:
        raise ValueError(f"residual must be {tuple(shape)} as y, got shape {tuple(residual.shape)}")
    if residual.dtype is not dtype:
        raise TypeError(f"residual must be {dtype} as y, got {residual.dtype}")
    if residual.device != device:
        raise ValueError(f"residual must be on {device} as y, got {residual.device}")
    hidden = shape[-1:]
    for name, weight in (("post_weight", post_weight), ("next_weight", next_weight)):
        if not isinstance(weight, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(weight).__name__}")
        if weight.shape != hidden:
            raise ValueError(
                f"{name} must be (hidden,) = ({shape[-1]},), got shape {tuple(weight.shape)}"
            )
        if weight.dtype is not dtype and weight.dtype is not torch.float32:
            raise TypeError(f"{name} must be {dtype} as y or float32, got {weight.dtype}")
        if weight.device != device:
            raise ValueError(f"{name} must be on {device} as y, got {weight.device}")
    if type(eps) is not float and (isinstance(eps, bool) or not isinstance(eps, NUMBERS)):
        raise TypeError(f"eps must be a number, got {type(eps).__name__}")
    if not 0 <= eps <= LARGEST:
        raise ValueError(f"eps must be at least 0 and finite in float32, got {eps}")
    if placement not in PLACEMENTS:
        raise ValueError(f"placement must be one of {PLACEMENTS}, got {placement!r}")


def _empty(y: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), y.new_empty(y.shape)


_norm_add_norm = operator.define(
    "norm_add_norm",
    "Tensor y, Tensor residual, Tensor post_weight, Tensor next_weight, float eps, str placement",
    "(Tensor residual, Tensor normed)",
    _empty,
    check=_validate,
)
