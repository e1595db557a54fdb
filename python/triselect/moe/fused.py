"""`fused_moe`: a whole mixture of experts, behind its router."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.ops import Permutation, RoutedPermutation, Routing, finalize, permute
from triselect.ops.grouped_swiglu import must_be_experts, must_be_rows, needs_grad, project, up

MOST = 2**26  # bytes of expert outputs at a time; more of them are made a part of H at a time
PART = 128  # multiples of which such parts are, as blocks of scales


class Shared(NamedTuple):
    """A SwiGLU network that every token goes through: ``(2 * Is, H)`` and ``(H, Is)``.

    Several shared experts are one, stacked: gates, then ups, and `down` side by side. Scales as of
    `grouped_swiglu`, without the dimension of experts.
    """

    gate_up: Tensor
    down: Tensor
    gate_up_scale: Tensor | None = None
    down_scale: Tensor | None = None


def fused_moe(
    hidden: Tensor,
    routing: Routing | RoutedPermutation,
    gate_up: Tensor,
    down: Tensor,
    *,
    shared: Shared | None = None,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The experts of each token, weighted and added up.

    Parameters
    ----------
    hidden : ``(T, H)`` float32, float16 or bfloat16
        T tokens, 0 and up.
    routing : Routing or RoutedPermutation
        Weights ``(T, K)`` float32 and experts ``(T, K)`` int32 or int64; -1 is padding. What
        `route_and_permute` returns saves a launch.
    gate_up, down, gate_up_scale, down_scale
        Of E experts, as `grouped_swiglu` takes them: ``(E, 2 * I, H)`` and ``(E, H, I)``.
    shared : Shared, optional
        What every token goes through besides, with weight 1.
    out : ``(T, H)``, optional
        Where the result goes, in the dtype of `hidden`. Without gradients only.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    Tensor
        ``(T, H)`` in the dtype of `hidden`; `out`, if it is given.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name. Experts out of range are refused on the CPU; on a
        device they act as padding.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    ``sum over k of weight * expert(hidden) + shared(hidden)``: `permute`, `grouped_swiglu`,
    `finalize`. Between them lie ``(T * K, I)`` numbers, and at most 64 MiB of the experts' outputs:
    of more than that, a part of the hidden size is made at a time. Gradients of hidden, weights of
    the routing, and weights that are not 8 bits; with them all outputs are made at once. Nothing
    waits for the device.

    Examples
    --------
    >>> hidden = torch.tensor([[1.0], [2.0]])
    >>> gate_up, down = torch.ones(2, 2, 1), torch.tensor([[[1.0]], [[-1.0]]])
    >>> routing = Routing(torch.tensor([[1.0, 0.5], [1.0, 1.0]]), torch.tensor([[0, 1], [1, 0]]))
    >>> fused_moe(hidden, routing, gate_up, down)
    tensor([[0.3655],
            [0.0000]])
    """
    must_be_experts(hidden, gate_up, down, gate_up_scale, down_scale)
    weights, experts = _must_be_routing(routing, hidden)
    if isinstance(routing, RoutedPermutation):
        permutation = routing.permutation
    else:
        permutation = permute(experts, gate_up.shape[0], backend=backend)
    must_be_rows(hidden, gate_up, permutation.offsets, permutation.source)
    learns = needs_grad(hidden, weights, gate_up, down, *(x for x in shared or () if x is not None))
    if learns and out is not None:
        raise ValueError("out has no gradient: leave it out, or call under torch.no_grad()")
    source: Tensor | None = permutation.source
    rows = hidden
    if learns:
        rows, source = _Copies.apply(hidden, *permutation), None
    h = up(rows, gate_up, permutation.offsets, source, gate_up_scale, backend)
    residuals = () if shared is None else (_always_on(hidden, shared, backend),)
    count, size = h.shape[0], hidden.shape[1]
    part = max(PART, MOST // (max(count, 1) * hidden.element_size()) // PART * PART)
    if learns or part >= size:
        y = project(h, down, permutation.offsets, down_scale, backend)
        return finalize(y, weights, permutation, residuals=residuals, out=out, backend=backend)
    if out is None:
        out = hidden.new_empty(hidden.shape)
    for first in range(0, size, part):
        here = slice(first, min(first + part, size))
        y = project(h, down[:, here], permutation.offsets, _rows_of(down_scale, here), backend)
        finalize(
            y,
            weights,
            permutation,
            residuals=[x[:, here] for x in residuals],
            out=out[:, here],
            backend=backend,
        )
    return out


def _always_on(hidden: Tensor, shared: Shared, backend: str) -> Tensor:
    """An expert that has all rows."""
    gate_up, down, gate_up_scale, down_scale = (
        None if x is None else x[None] for x in Shared(*shared)
    )
    assert gate_up is not None
    assert down is not None
    must_be_experts(hidden, gate_up, down, gate_up_scale, down_scale)
    offsets = torch.arange(2, dtype=torch.int32, device=hidden.device) * hidden.shape[0]
    h = up(hidden, gate_up, offsets, None, gate_up_scale, backend)
    return project(h, down, offsets, down_scale, backend)


def _rows_of(scale: Tensor | None, here: slice) -> Tensor | None:
    """The scales of some output channels."""
    if scale is None or scale.dim() == 2:
        return None if scale is None else scale[:, here]
    return scale[:, here.start // PART : -(-here.stop // PART)]


def _must_be_routing(routing: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    weights, experts = routing[:2]
    for name, value in (("routing.weights", weights), ("routing.experts", experts)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if value.dim() != 2 or value.shape[0] != hidden.shape[0]:
            raise ValueError(
                f"{name} must be ({hidden.shape[0]}, top_k) as hidden {tuple(hidden.shape)}, "
                f"got shape {tuple(value.shape)}"
            )
        if value.device != hidden.device:
            raise ValueError(f"{name} must be on {hidden.device} as hidden, got {value.device}")
    if weights.shape != experts.shape:
        raise ValueError(
            f"routing.weights and routing.experts must have one shape, got {tuple(weights.shape)} "
            f"and {tuple(experts.shape)}"
        )
    if weights.dtype is not torch.float32:
        raise TypeError(f"routing.weights must be torch.float32, got {weights.dtype}")
    return weights, experts


class _Copies(torch.autograd.Function):
    """The rows of a permutation. The gradient of a token is the sum over its copies in the order of
    k, which indexing would leave to chance on a device.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, source: Tensor, slot_of: Tensor, offsets: Tensor
    ) -> Tensor:
        ctx.save_for_backward(source, slot_of, offsets)
        return hidden.index_select(0, source.clamp(min=0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        permutation = Permutation(*ctx.saved_tensors)
        ones = grads[0].new_ones(permutation.slot_of.shape, dtype=torch.float32)
        return finalize(grads[0], ones, permutation), None, None, None
