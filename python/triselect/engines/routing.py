"""`grouped_topk` as the routing function of an engine."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from triselect.ops import grouped_topk

RoutingFunction = Callable[[Tensor, Tensor, int, bool], tuple[Tensor, Tensor]]
OPTIONS = [
    name
    for name, parameter in inspect.signature(grouped_topk).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
]


def vllm_routing(**options: Any) -> RoutingFunction:
    """A ``custom_routing_function`` for vLLM's FusedMoE layer.

    Parameters
    ----------
    **options
        Of `grouped_topk`: ``num_expert_group=8, balanced=True`` for MoGE. `renormalize`, where it
        is given, counts instead of the layer's.

    Returns
    -------
    callable
        ``(hidden_states, gating_output, topk, renormalize)`` to weights ``(T, topk)`` float32 and
        experts ``(T, topk)`` int32, from logits ``gating_output (T, E)``.

    Raises
    ------
    TypeError
        An option that `grouped_topk` does not have. Values are looked at in the first call.

    Notes
    -----
    vLLM calls it with these four names, ``topk`` and ``renormalize`` being the layer's, and has
    weights as float32 and experts as int32, or as its kernels ask
    (``vllm/model_executor/layers/fused_moe/router/custom_routing_router.py``). A layer with
    ``use_grouped_topk`` does not take one, and ``renormalize`` is True unless the layer is told
    otherwise: MoGE's weights are not renormalised. `routed_scaling_factor` belongs in one place,
    the layer or here.

    Examples
    --------
    >>> import torch
    >>> route = vllm_routing(num_expert_group=4, balanced=True, renormalize=False)
    >>> logits = torch.tensor([[1.0, 3.0, 2.0, 4.0, 0.0, 0.0, 0.0, 0.5]])
    >>> weights, experts = route(hidden_states=None, gating_output=logits, topk=4, renormalize=True)
    >>> experts
    tensor([[1, 3, 4, 7]], dtype=torch.int32)
    """
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"options must be those of grouped_topk, {OPTIONS}, got {name!r}")

    def route(
        hidden_states: Tensor, gating_output: Tensor, topk: int, renormalize: bool
    ) -> tuple[Tensor, Tensor]:
        found = grouped_topk(gating_output, topk, **{"renormalize": renormalize} | options)
        return found.weights, found.experts

    return route


def sglang_routing(**options: Any) -> RoutingFunction:
    """A ``custom_routing_function`` for SGLang's TopK layer.

    Parameters
    ----------
    **options
        As of `vllm_routing`.

    Returns
    -------
    callable
        As of `vllm_routing`; SGLang calls it with the same names.

    Raises
    ------
    TypeError
        An option that `grouped_topk` does not have.

    Notes
    -----
    SGLang calls it where ``use_grouped_topk`` is off, and takes weights and experts as they are
    (``select_experts`` in ``python/sglang/srt/layers/moe/topk.py``). There it supports neither
    padded batches (``num_token_non_padded``), nor expert location dispatch, nor
    ``apply_routed_scaling_factor_on_output``, and of shared experts that are fused into the routed
    ones this function knows nothing: ``num_fused_shared_experts`` must be 0. Runners that route by
    themselves (triton_kernels, FlashInfer's TRT-LLM) do not call it, unless ``output_format`` is
    ``TopKOutputFormat.STANDARD``.

    Examples
    --------
    >>> import torch
    >>> route = sglang_routing(num_expert_group=4, balanced=True)
    >>> logits = torch.tensor([[1.0, 3.0, 2.0, 4.0, 0.0, 0.0, 0.0, 0.5]])
    >>> weights, _ = route(hidden_states=None, gating_output=logits, topk=4, renormalize=True)
    >>> float(weights.sum())
    1.0
    """
    return vllm_routing(**options)
