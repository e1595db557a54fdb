"""`limit_experts`: routing within a budget of experts for the whole batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from triselect.ops import backends, operator
from triselect.ops.grouped_topk import (
    ARGUMENTS,
    empty_routing,
    needs_grad,
    routing_arguments,
    routing_gradients,
    save_routing,
)


class LimitedRouting(NamedTuple):
    """A routing in which only some experts appear.

    ``weights (T, top_k) float32``, ``experts (T, top_k) int32`` and ``kept (E,) bool``.
    """

    weights: Tensor
    experts: Tensor
    kept: Tensor


def limit_experts(
    logits: Tensor,
    top_k: int,
    budget: int,
    *,
    per_group: bool = True,
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
) -> LimitedRouting:
    """Route a batch over its most-voted experts alone, so that fewer weights are read.

    Every token votes for the experts that `grouped_topk` chooses for it. The most-voted are kept,
    and tokens choose again among those.

    Parameters
    ----------
    logits : ``(T, E)`` float32, float16 or bfloat16
        Router logits of T tokens (0 and up) over E experts, any strides.
    top_k : int
        Experts per token in all.
    budget : int
        Experts kept: of every group where `per_group`, of all otherwise. At least K' = top_k /
        topk_group (rounded up) per group, so that every token finds its number.
    per_group : bool
        False keeps the K' most-voted of every group first, then the most-voted of the rest.
    num_expert_group, ..., expert_scale
        The options of `grouped_topk`.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    LimitedRouting
        ``weights (T, top_k) float32``, ``experts (T, top_k) int32`` as of `grouped_topk`, and the
        experts that were kept, ``kept (E,) bool``.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name; a budget too small for `top_k`.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    Of equal votes the lowest index is kept. Scores, and so weights, are those over all experts;
    what is not kept cannot be selected and does not count for its group's score. A token's routing
    depends on its batch here, as it does in no other operator. With a budget of a whole group
    (or of all experts) it is `grouped_topk`. Weights are differentiable like those.

    This is the MERRouter of vllm-ascend (pull request 1421), which keeps 5 of 8 experts in each
    group of Pangu Pro MoE. `triselect.moe.savings` says what it saved and what it changed.

    Examples
    --------
    >>> logits = torch.tensor([[3.0, 2.0, 0.0], [3.0, 0.0, 1.0], [0.0, 1.0, 2.0]])
    >>> limit_experts(logits, 1, 1).experts.flatten()  # expert 0 has two of the three votes
    tensor([0, 0, 0], dtype=torch.int32)
    >>> limit_experts(logits, 1, 2).kept
    tensor([ True, False,  True])
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
    _validate(logits.shape[1], top_k, budget, per_group, groups=args[2], kept=args[3])
    if backend == "auto" and not needs_grad(logits, expert_scale):
        return LimitedRouting(*_limit_experts.auto(*args, budget, per_group))
    backends.must_be_known(backend)
    return LimitedRouting(*_limit_experts.named(*args, budget, per_group, backend))


def _validate(
    experts: int, top_k: int, budget: int, per_group: bool, *, groups: int, kept: int
) -> None:
    operator.must_be_int("budget", budget)
    if type(per_group) is not bool:
        raise TypeError(f"per_group must be a bool, got {type(per_group).__name__}")
    need = -(-top_k // kept)
    if per_group:
        low, high, of = need, experts // groups, "a group"
    else:
        low, high, of = need * groups, experts, "all"
    if not low <= budget <= high:
        raise ValueError(
            f"budget must be between {low} and the {high} experts of {of}, got {budget}: every "
            f"group must keep the {need} that top_k = {top_k} may take of it"
        )


def _empty(logits: Tensor, top_k: int, *args: object) -> tuple[Tensor, Tensor, Tensor]:
    return *empty_routing(logits, top_k), logits.new_empty(logits.shape[1], dtype=torch.bool)


_limit_experts = operator.define(
    "limit_experts",
    f"{ARGUMENTS}, int budget, bool per_group",
    "(Tensor weights, Tensor experts, Tensor kept)",
    _empty,
)
_limit_experts.differentiable(routing_gradients, save_routing)
