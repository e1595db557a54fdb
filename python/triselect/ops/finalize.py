"""`finalize`: what a token's experts say, weighed and added up."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from triselect.ops import backends, cache, operator
from triselect.ops.permute import Permutation
from triselect.ops.route_and_permute import RoutedPermutation


def finalize(
    rows: Tensor,
    weights: Tensor,
    permutation: Permutation | RoutedPermutation,
    *,
    experts: Tensor | None = None,
    bias: Tensor | None = None,
    residuals: Sequence[Tensor] = (),
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Bring the rows of experts back to their tokens: weighed, added up, with up to two residuals.

    Parameters
    ----------
    rows : ``(S, H)`` float32, float16 or bfloat16
        What the experts say, in the order of `permutation`, any strides.
    weights : ``(T, K)`` float32
        Of every assignment, as `grouped_topk` returns them.
    permutation : Permutation or RoutedPermutation
        Its ``slot_of (T, K)`` int32 is the row of every assignment. Each row is one assignment's;
        -1 is none, which is skipped.
    experts : ``(T, K)`` int32 or int64, optional
        Whose `bias` an assignment has. -1 is padding, which is skipped.
    bias : ``(E, H)`` of rows' dtype or float32, optional
        Added to the rows of each of E experts before they are weighed. Goes with `experts`.
    residuals : up to two ``(T, H)`` of rows' dtype
        Added to the sum: what goes around the experts, and what shared experts say.
    out : ``(T, H)`` of rows' dtype, optional
        Where to write. Its columns lie side by side; it may be a residual, to add to that in place,
        and shares memory with nothing else that is read. Not where a gradient is needed.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    Tensor
        ``(T, H)`` of rows' dtype; `out` where it is given.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name. Slots and experts out of range, and a row that is
        of two assignments, are refused on the CPU. On a device, what is out of range is skipped,
        and of a row's two assignments one decides its gradient.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    ``out[t] = sum over k of weights[t, k] * (rows[slot_of[t, k]] + bias[experts[t, k]])``, k by k
    in float32, then ``+ residuals``, rounded once. Nothing is added by atomics, so the same input
    gives the same bits on every run; rows without an assignment are not read. Differentiable in
    `rows`, `weights`, `bias` and `residuals`.

    Examples
    --------
    >>> from triselect import permute
    >>> permutation = permute(torch.tensor([[1, 0], [0, 1]]), 2)
    >>> rows = torch.tensor([[1.0], [2.0], [3.0], [4.0]])  # expert 0's two, then expert 1's
    >>> weights = torch.tensor([[1.0, 10.0], [1.0, 10.0]])
    >>> finalize(rows, weights, permutation)  # 3 + 10 * 1, 2 + 10 * 4
    tensor([[13.],
            [42.]])
    """
    slot_of = getattr(permutation, "slot_of", None)
    if slot_of is None:
        got = type(permutation).__name__
        raise TypeError(f"permutation must be what triselect.permute returns, got {got}")
    if not isinstance(residuals, tuple | list):
        raise TypeError(f"residuals must be a tuple of tensors, got {type(residuals).__name__}")
    if len(residuals) > 2:
        raise ValueError(f"residuals must be two at most, got {len(residuals)}")
    args = (rows, weights, slot_of, experts, bias, *residuals, *(None,) * (2 - len(residuals)))
    _validate(*args)
    trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in args)
    if backend != "auto":
        backends.must_be_known(backend)
    if out is None:
        if backend == "auto" and not trained:
            # The inference path: no autograd registration in between.
            result: Tensor = _finalize.auto(*args)
        else:
            result = _finalize.named(*args, backend)
        return result
    _validate_out(out, rows, slot_of, trained)
    if backend == "auto":
        _finalize_out.auto(*args, out)
    else:
        _finalize_out.named(*args, out, backend)
    return out


def _validate(
    rows: Tensor,
    weights: Tensor,
    slot_of: Tensor,
    experts: Tensor | None,
    bias: Tensor | None,
    *residuals: Tensor | None,
) -> None:
    cache.must_be_tensor("rows", rows, "(rows, hidden)")
    if rows.dtype not in cache.FLOATS:
        raise TypeError(f"rows must be float32, float16 or bfloat16, got {rows.dtype}")
    cache.must_be_tensor("permutation.slot_of", slot_of, "(tokens, top_k)", rows.device)
    cache.must_be_tensor("weights", weights, "(tokens, top_k)", rows.device)
    if slot_of.dtype is not torch.int32:
        raise TypeError(f"permutation.slot_of must be int32, got {slot_of.dtype}")
    if weights.dtype is not torch.float32:
        raise TypeError(f"weights must be float32, got {weights.dtype}")
    cache.must_have_shape("weights", weights, slot_of.shape, "as permutation.slot_of")
    if (experts is None) != (bias is None):
        given, missing = ("bias", "experts") if experts is None else ("experts", "bias")
        raise ValueError(f"{given} must come with {missing}, got None for that")
    if experts is not None and bias is not None:
        cache.must_be_tensor("experts", experts, "(tokens, top_k)", rows.device)
        cache.must_be_integers("experts", experts)
        cache.must_have_shape("experts", experts, slot_of.shape, "as permutation.slot_of")
        cache.must_be_tensor("bias", bias, "(experts, hidden)", rows.device)
        if bias.dtype is not rows.dtype and bias.dtype is not torch.float32:
            raise TypeError(f"bias must be float32 or {rows.dtype} as rows, got {bias.dtype}")
        cache.must_have_shape("bias", bias, (bias.shape[0], rows.shape[1]), "hidden as rows")
    for residual in residuals:
        if residual is not None:
            _validate_result("residuals", residual, rows, slot_of)


def _validate_result(name: str, value: Tensor, rows: Tensor, slot_of: Tensor) -> None:
    cache.must_be_tensor(name, value, "(tokens, hidden)", rows.device)
    cache.must_have_dtype(name, value, rows.dtype)
    shape = (slot_of.shape[0], rows.shape[1])
    cache.must_have_shape(name, value, shape, "as permutation and rows")


def _validate_out(out: Tensor, rows: Tensor, slot_of: Tensor, trained: bool) -> None:
    _validate_result("out", out, rows, slot_of)
    if trained:
        raise ValueError("out must be None where a gradient is needed, got a tensor")
    if out.numel() and out.shape[1] > 1 and out.stride(1) != 1:
        raise ValueError(f"out's columns must lie side by side, got strides {out.stride()}")


def _check(
    rows: Tensor,
    weights: Tensor,
    slot_of: Tensor,
    experts: Tensor | None,
    bias: Tensor | None,
    *others: Tensor | None,
) -> None:
    operator.must_be_in_range("slot_of", slot_of, -1, rows.shape[0] - 1, "-1 for none")
    named = torch.bincount(slot_of.flatten() + 1, minlength=2)[1:]
    if named.max() > 1:
        row = int(named.argmax())
        raise ValueError(f"slot_of must name a row once at most, got {row} twice")
    if experts is not None and bias is not None:
        operator.must_be_in_range("experts", experts, -1, bias.shape[0] - 1, "-1 for padding")


def _empty(rows: Tensor, weights: Tensor, slot_of: Tensor, *args: Any) -> Tensor:
    return rows.new_empty((slot_of.shape[0], rows.shape[1]))


ARGUMENTS = (
    "Tensor rows, Tensor weights, Tensor slot_of, Tensor? experts, Tensor? bias, "
    "Tensor? residual, Tensor? residual2"
)
_finalize = operator.define("finalize", ARGUMENTS, "Tensor", _empty, check=_check)
# The same, written into its last argument.
_finalize_out = operator.define(
    "finalize_out",
    f"{ARGUMENTS}, Tensor(a!) out",
    "()",
    lambda *args: None,
    room="finalize",
    check=_check,
    mutated=(7,),
)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """In plain PyTorch for every backend: also under torch.compile, and to be derived again."""
    from triselect.kernels.finalize.eager import gradients

    d_rows, d_weights, d_bias = gradients(grad, *ctx.saved_tensors)
    _, _, _, _, _, residual, residual2, _ = ctx.needs_input_grad[:8]
    return (
        d_rows,
        d_weights,
        None,
        None,
        d_bias,
        grad if residual else None,
        grad if residual2 else None,
        None,
    )


_finalize.differentiable(_gradients, _save)
