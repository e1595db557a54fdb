"""`grouped_swiglu`: the experts of a mixture, over rows in the order of their experts."""

from typing import Any

import torch
from torch import Tensor

from triselect.kernels.grouped_swiglu import eager
from triselect.ops import backends, cache, operator

BLOCK = 128  # of weights in float8, along both dimensions


def grouped_swiglu(
    rows: Tensor,
    gate_up: Tensor,
    down: Tensor,
    offsets: Tensor,
    *,
    source: Tensor | None = None,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
    validate: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Each expert's SwiGLU network over its own rows.

    Parameters
    ----------
    rows : ``(R, H)`` float32, float16 or bfloat16
        Any strides.
    gate_up : ``(E, 2 * I, H)``
        Of each expert, gate's rows, then up's. Contiguous, in the dtype of `rows`, or int8 or
        float8_e4m3fn.
    down : ``(E, H, I)``
        As `gate_up`.
    offsets : ``(E + 1,)`` int32
        Expert e has the rows ``offsets[e]`` to ``offsets[e + 1] - 1`` of the result, as in
        `Permutation`.
    source : ``(S,)`` int32, optional
        Row i of the result is of ``rows[source[i]]``, as in `Permutation`. By default S = R, and it
        is of ``rows[i]``.
    gate_up_scale, down_scale : float32
        With 8 bits, what weights are multiplied by. int8: one for each output channel,
        ``(E, 2 * I)`` and ``(E, H)``. float8: one for each block of 128 x 128,
        ``(E, ceil(2 * I / 128), ceil(H / 128))`` and ``(E, ceil(H / 128), ceil(I / 128))``.
    validate : bool
        Look at the values of `offsets` and `source` on a device too, which waits for it. On the CPU
        they are always looked at.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    Tensor
        ``(S, H)`` in the dtype of `rows`; zero behind the last expert's rows.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name. Offsets that fall or leave the rows, and sources out
        of range, are refused on the CPU; on a device such rows are undefined, unless `validate`
        asks to look.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    With g, u = W_gate x, W_up x: ``y = W_down (silu(g) * u)`` (SwiGLU, arXiv 2002.05202). Sums are
    in float32; ``silu(g) * u`` and y are rounded to the dtype of `rows`. Gradients of rows and of
    weights that are not 8 bits; g and u are computed again for them.

    Examples
    --------
    >>> rows = torch.tensor([[1.0], [2.0], [3.0]])
    >>> gate_up, down = torch.ones(2, 2, 1), torch.tensor([[[1.0]], [[-1.0]]])
    >>> offsets = torch.tensor([0, 2, 3], dtype=torch.int32)  # rows 0 and 1 are expert 0's
    >>> grouped_swiglu(rows, gate_up, down, offsets)
    tensor([[ 0.7311],
            [ 3.5232],
            [-8.5732]])
    """
    must_be_experts(rows, gate_up, down, gate_up_scale, down_scale)
    must_be_rows(rows, gate_up, offsets, source)
    if validate:
        _check_values(offsets, source, rows)
    if backend != "auto":
        backends.must_be_known(backend)
    h = up(rows, gate_up, offsets, source, gate_up_scale, backend)
    return project(h, down, offsets, down_scale, backend)


def up(
    rows: Tensor,
    gate_up: Tensor,
    offsets: Tensor,
    source: Tensor | None,
    scale: Tensor | None,
    backend: str,
) -> Tensor:
    """``silu(g) * u`` ``(S, I)``, of arguments that fit."""
    found: Tensor
    if needs_grad(rows, gate_up):
        if source is not None:  # whose gradient torch knows
            rows, source = rows.index_select(0, source.clamp(min=0)), None
        found = _up.named(rows, gate_up, offsets, source, scale, backend)
    elif backend == "auto":
        found = _up.auto(rows, gate_up, offsets, source, scale)
    else:
        found = _up.named(rows, gate_up, offsets, source, scale, backend)
    return found


def project(h: Tensor, down: Tensor, offsets: Tensor, scale: Tensor | None, backend: str) -> Tensor:
    """``W_down h`` ``(S, N)``; `down` may be N of its rows, ``(E, N, I)``."""
    found: Tensor
    if backend == "auto" and not needs_grad(h, down):
        found = _down.auto(h, down, offsets, scale)
    else:
        found = _down.named(h, down, offsets, scale, backend)
    return found


def needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def must_be_experts(
    rows: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
) -> None:
    """Raises unless these are weights of experts for `rows`."""
    cache.must_be_tensor("rows", rows, "(rows, hidden)")
    if rows.dtype not in cache.FLOATS:
        raise TypeError(f"rows must be float32, float16 or bfloat16, got {rows.dtype}")
    cache.must_be_tensor("gate_up", gate_up, "(experts, 2 * intermediate, hidden)", rows.device)
    cache.must_be_tensor("down", down, "(experts, hidden, intermediate)", rows.device)
    hidden = rows.shape[1]
    experts, both, inner = gate_up.shape
    if not hidden or not experts or not both or both % 2 or inner != hidden:
        raise ValueError(
            f"gate_up must be (experts, 2 * intermediate, {hidden}), gate's rows and then up's, "
            f"got shape {tuple(gate_up.shape)}"
        )
    cache.must_have_shape("down", down, (experts, hidden, both // 2), "as gate_up")
    scales = (("gate_up", gate_up, gate_up_scale), ("down", down, down_scale))
    for name, weight, scale in scales:
        if not weight.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {weight.stride()}")
        if weight.dtype is not rows.dtype and weight.dtype not in cache.EIGHT_BITS:
            raise TypeError(
                f"{name} must be {rows.dtype} as rows, int8 or float8_e4m3fn, got {weight.dtype}"
            )
        _must_be_scale(f"{name}_scale", scale, weight)
    cache.must_have_dtype("down", down, gate_up.dtype)


def _must_be_scale(name: str, scale: Tensor | None, weight: Tensor) -> None:
    if weight.dtype not in cache.EIGHT_BITS:
        if scale is not None:
            raise ValueError(f"{name} goes with weights of 8 bits, these are {weight.dtype}")
        return
    if scale is None:
        raise ValueError(f"{name} must be given for weights of {weight.dtype}")
    experts, n, k = weight.shape
    if weight.dtype is torch.int8:
        shape: tuple[int, ...] = (experts, n)
        meaning = "one for each output channel"
    else:
        shape = (experts, -(-n // BLOCK), -(-k // BLOCK))
        meaning = f"one for each block of {BLOCK} x {BLOCK}"
    if not isinstance(scale, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(scale).__name__}")
    cache.must_have_shape(name, scale, shape, meaning)
    if scale.dtype is not torch.float32:
        raise TypeError(f"{name} must be torch.float32, got {scale.dtype}")
    if scale.device != weight.device:
        raise ValueError(f"{name} must be on {weight.device} as the others, got {scale.device}")
    if not scale.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {scale.stride()}")


def must_be_rows(rows: Tensor, gate_up: Tensor, offsets: Tensor, source: Tensor | None) -> None:
    """Raises unless these say which rows are whose."""
    cache.must_be_tensor("offsets", offsets, "(experts + 1,)", rows.device)
    cache.must_have_shape("offsets", offsets, (gate_up.shape[0] + 1,), "one more than experts")
    if offsets.dtype is not torch.int32:
        raise TypeError(f"offsets must be torch.int32, got {offsets.dtype}")
    if source is None:
        return
    cache.must_be_tensor("source", source, "(rows,)", rows.device)
    if source.dtype is not torch.int32:
        raise TypeError(f"source must be torch.int32, got {source.dtype}")


def _check_values(offsets: Tensor, source: Tensor | None, rows: Tensor) -> None:
    count = len(rows) if source is None else len(source)
    steps = offsets.diff()
    if offsets[0] != 0 or (steps < 0).any() or offsets[-1] > count:
        raise ValueError(
            f"offsets must rise from 0 to at most the {count} rows, got {offsets.tolist()}"
        )
    if source is not None:
        used = source[: int(offsets[-1])]
        operator.must_be_in_range("source", used, 0, len(rows) - 1, "a row")


def _check_up(
    rows: Tensor, gate_up: Tensor, offsets: Tensor, source: Tensor | None, *args: Any
) -> None:
    _check_values(offsets, source, rows)


def _check_down(h: Tensor, down: Tensor, offsets: Tensor, *args: Any) -> None:
    _check_values(offsets, None, h)


def _empty_up(
    rows: Tensor, gate_up: Tensor, offsets: Tensor, source: Tensor | None, *args: Any
) -> Tensor:
    count = rows.shape[0] if source is None else source.shape[0]
    return rows.new_empty((count, gate_up.shape[1] // 2))


def _empty_down(h: Tensor, down: Tensor, *args: Any) -> Tensor:
    return h.new_empty((h.shape[0], down.shape[1]))


_up = operator.define(
    "grouped_swiglu_up",
    "Tensor rows, Tensor gate_up, Tensor offsets, Tensor? source, Tensor? scale",
    "Tensor",
    _empty_up,
    room="grouped_swiglu",
    check=_check_up,
)
_down = operator.define(
    "grouped_swiglu_down",
    "Tensor h, Tensor down, Tensor offsets, Tensor? scale",
    "Tensor",
    _empty_down,
    room="grouped_swiglu",
    check=_check_down,
)


# Of the gradients. Operators of their own, as torch.compile follows no grouped_mm but of bfloat16.
GRADIENTS = torch.library.Library("triselect_gradients", "FRAGMENT")


def _define_gradients(operation: operator.Operator, function: Any) -> Any:
    """Gradients of the two factors, which `function` makes of weights in the dtype of x."""
    name = operation.name
    GRADIENTS.define(
        f"{name}(Tensor grad, Tensor x, Tensor weight, Tensor offsets, Tensor? scale) "
        "-> (Tensor, Tensor)"
    )

    def run(
        grad: Tensor, x: Tensor, weight: Tensor, offsets: Tensor, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        d_x, d_weight = function(grad, x, eager.dequantised(weight, scale, x.dtype), offsets)
        return d_x.contiguous(), d_weight.contiguous()

    def fake(grad: Tensor, x: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        return x.new_empty(x.shape), x.new_empty(weight.shape)

    GRADIENTS.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"triselect_gradients::{name}", fake, lib=GRADIENTS)
    return getattr(torch.ops.triselect_gradients, name).default


_up_backward = _define_gradients(_up, eager.grouped_swiglu_up_backward)
_down_backward = _define_gradients(_down, eager.grouped_swiglu_down_backward)


def _save_up(ctx: Any, inputs: tuple, output: Tensor) -> None:
    rows, gate_up, offsets, source, scale, _ = inputs
    if source is not None:  # which `up` never lets get here
        raise ValueError("source must be None where a gradient is needed: index rows before")
    ctx.save_for_backward(rows, gate_up, offsets, scale)


def _up_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, gate_up, offsets, scale = ctx.saved_tensors
    d_rows, d_weight = _up_backward(grad, rows, gate_up, offsets, scale)
    return d_rows, None if scale is not None else d_weight, None, None, None, None


def _save_down(ctx: Any, inputs: tuple, output: Tensor) -> None:
    h, down, offsets, scale, _ = inputs
    ctx.save_for_backward(h, down, offsets, scale)


def _down_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    h, down, offsets, scale = ctx.saved_tensors
    d_h, d_weight = _down_backward(grad, h, down, offsets, scale)
    return d_h, None if scale is not None else d_weight, None, None, None


_up.differentiable(_up_gradients, _save_up)
_down.differentiable(_down_gradients, _save_down)
