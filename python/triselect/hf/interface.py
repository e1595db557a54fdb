"""`fused_moe` behind transformers' experts interface.

The configuration of an experts module names the function that computes it. transformers calls that
with hidden states ``(T, H)``, experts and weights ``(T, K)``. Registered here is one name for each
backend; `why_not` says which modules they can compute.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.integrations.moe import ExpertsInterface, _default_apply_gate

from triselect.moe.fused import fused_moe
from triselect.ops import Routing, backends
from triselect.ops.cache import FLOATS

NAMES = {name: "triselect" if name == "auto" else f"triselect-{name}" for name in backends.BACKENDS}


def implementation(backend: str) -> Callable[..., Tensor]:
    """The experts' forward, by a backend."""

    def forward(
        experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Tensor:
        # Whoever sets the name without `use_experts` gets no wrong answer either.
        if reason := wrong_formula(experts):
            raise ValueError(f"{type(experts).__name__} cannot be computed by triselect: {reason}")
        gate_up, down = experts.gate_up_proj, experts.down_proj
        # E stands for an expert that is elsewhere (expert parallelism).
        index = top_k_index.masked_fill(top_k_index == gate_up.shape[0], -1)
        # Where they differ, transformers computes in the dtype of the weights too.
        found = fused_moe(
            hidden_states.to(gate_up.dtype),
            Routing(top_k_weights.float(), index),
            gate_up,
            down,
            backend=backend,
        )
        return found.to(hidden_states.dtype)

    return forward


for _backend, _name in NAMES.items():
    ExpertsInterface.register(_name, implementation(_backend))


def find_experts(model: nn.Module) -> dict[str, Any]:
    """Experts of all layers by their names: what follows the interface or looks as if it might."""
    return {
        name: module
        for name, module in model.named_modules()
        if follows_interface(module) or _is_stack(getattr(module, "down_proj", None))
    }


def follows_interface(module: nn.Module) -> bool:
    return hasattr(module, "is_transposed") and hasattr(module, "has_bias")


def why_not(experts: Any) -> str | None:
    """Why `fused_moe` cannot compute these experts, or None where it can."""
    if not follows_interface(experts):
        return "it does not follow the experts interface of transformers"
    if reason := wrong_formula(experts):
        return reason
    weights: list[Tensor] = []
    for name in ("gate_up_proj", "down_proj"):
        weight: Any = getattr(experts, name, None)
        if not _is_stack(weight):
            return f"it has no {name} of three dimensions"
        if weight.dtype not in FLOATS or not _is_plain(weight):
            return f"its {name} is quantised: {type(weight).__name__} of {weight.dtype}"
        if not weight.is_contiguous():
            return f"its {name} is not contiguous, its strides are {weight.stride()}"
        weights.append(weight)
    gate_up, down = weights
    count, hidden, inner = down.shape
    if gate_up.shape != (count, 2 * inner, hidden) or gate_up.dtype != down.dtype:
        return (
            f"gate_up_proj {tuple(gate_up.shape)} {gate_up.dtype} and "
            f"down_proj {tuple(down.shape)} {down.dtype} do not fit each other"
        )
    return None


def wrong_formula(experts: Any) -> str | None:
    """What these experts compute other than ``down(silu(gate) * up)``; None where it is that.

    Attributes that only later versions of transformers set are looked for with their default.
    """
    if not getattr(experts, "has_gate", True):
        return "its experts have no gate"
    if experts.is_transposed:
        return "its weights are transposed: (E, H, 2 * I) and (E, I, H)"
    if not getattr(experts, "is_concatenated", True):
        return "its rows of gate and up alternate"
    if experts.has_bias:
        return "its experts have biases"
    if getattr(experts, "has_post_expert_norm", False):
        return "a norm follows its experts"
    if type(experts)._apply_gate is not _default_apply_gate:
        return "its activation is its own, not silu(gate) * up"
    activation = experts.act_fn
    if not (isinstance(activation, nn.SiLU | SiLUActivation) or activation is F.silu):
        name = getattr(activation, "__name__", type(activation).__name__)
        return f"its activation is {name}, not SiLU"
    return None


def _is_stack(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.dim() == 3


def _is_plain(weight: Tensor) -> bool:
    """Not a tensor of some package for quantisation. Shards of torch's own are fine: transformers
    hands the experts their local part."""
    return type(weight) in (Tensor, nn.Parameter) or type(weight).__name__ == "DTensor"
