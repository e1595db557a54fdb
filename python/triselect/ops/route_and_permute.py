"""`route_and_permute`: from logits to rows in the order of their experts."""

from typing import NamedTuple

from torch import Tensor

from triselect.ops import backends, operator
from triselect.ops.grouped_topk import (
    ARGUMENTS,
    Routing,
    empty_routing,
    needs_grad,
    routing_arguments,
    routing_gradients,
    save_routing,
)
from triselect.ops.permute import Permutation, empty_permutation


class RoutedPermutation(NamedTuple):
    """All that `grouped_topk` and `permute` return, field by field.

    ``weights (T, top_k) float32``; ``experts (T, top_k)``, ``source (T * top_k,)``,
    ``slot_of (T, top_k)`` and ``offsets (E + 1,)``, all int32.
    """

    weights: Tensor
    experts: Tensor
    source: Tensor
    slot_of: Tensor
    offsets: Tensor

    @property
    def routing(self) -> Routing:
        return Routing(self.weights, self.experts)

    @property
    def permutation(self) -> Permutation:
        return Permutation(self.source, self.slot_of, self.offsets)


def route_and_permute(
    logits: Tensor,
    top_k: int,
    *,
    num_expert_group: int = 1,
    topk_group: int | None = None,
    balanced: bool = False,
    scoring_func: str = "softmax",
    group_score: str = "max",
    e_score_correction_bias: Tensor | None = None,
    renormalize: bool = False,
    routed_scaling_factor: float = 1.0,
    expert_scale: Tensor | None = None,
    backend: str = "auto",
) -> RoutedPermutation:
    """Route tokens and put their copies in the order of their experts: two operators in one.

    Parameters
    ----------
    logits : ``(T, E)`` float32, float16 or bfloat16
        Router logits of T tokens (0 and up) over E experts, any strides.
    top_k : int
        Experts per token in all.
    num_expert_group, ..., expert_scale
        The options of `grouped_topk`.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    RoutedPermutation
        ``weights`` and ``experts`` as of `grouped_topk`; ``source``, ``slot_of`` and ``offsets`` as
        of `permute` on those experts. The same values as from the two apart, which ``routing`` and
        ``permutation`` give.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    Weights are differentiable as those of `grouped_topk`. Where all groups are kept and `balanced`
    (MoGE, arXiv 2505.21411), every group has T * top_k / G rows whatever the logits say.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[1.0, 3.0, 2.0, 4.0], [5.0, 1.0, 0.0, 4.0]])
    >>> routed = route_and_permute(logits, 2, num_expert_group=2, balanced=True)
    >>> routed.experts
    tensor([[1, 3],
            [0, 3]], dtype=torch.int32)
    >>> routed.source, routed.offsets
    (tensor([1, 0, 0, 1], dtype=torch.int32), tensor([0, 1, 2, 2, 4], dtype=torch.int32))
    """
    args = routing_arguments(
        logits,
        top_k,
        num_expert_group,
        topk_group,
        balanced,
        scoring_func,
        group_score,
        e_score_correction_bias,
        renormalize,
        routed_scaling_factor,
        expert_scale,
    )
    if logits.shape[0] * top_k > operator.LARGEST_INT32:
        raise ValueError(
            f"logits must have fewer tokens: {logits.shape[0]} with top_k = {top_k} "
            "are more than 2**31 - 1 rows"
        )
    if backend == "auto" and not needs_grad(logits, expert_scale):
        return RoutedPermutation(*_route_and_permute.auto(*args))
    backends.must_be_known(backend)
    return RoutedPermutation(*_route_and_permute.named(*args, backend))


def _empty(logits: Tensor, top_k: int, *options: object) -> tuple[Tensor, ...]:
    weights, experts = empty_routing(logits, top_k)
    return weights, experts, *empty_permutation(experts, logits.shape[1])


_route_and_permute = operator.define(
    "route_and_permute",
    ARGUMENTS,
    "(Tensor weights, Tensor experts, Tensor source, Tensor slot_of, Tensor offsets)",
    _empty,
)
_route_and_permute.differentiable(routing_gradients, save_routing)
