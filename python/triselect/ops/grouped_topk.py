"""`grouped_topk`: MoE routing over groups of experts."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.ops import backends, operator

SCORING_FUNCS = ("softmax", "sigmoid", "sqrt_softplus", "identity")
GROUP_SCORES = ("max", "top2_sum")
NUMBERS = (float, int, torch.SymFloat, torch.SymInt)
LARGEST = torch.finfo(torch.float32).max
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Routing(NamedTuple):
    """Where every token goes: ``weights (T, top_k) float32`` and ``experts (T, top_k) int32``."""

    weights: Tensor
    experts: Tensor


def grouped_topk(
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
) -> Routing:
    """Choose `top_k` experts per token: freely, from the best groups, or evenly from each of them.

    Parameters
    ----------
    logits : ``(T, E)`` float32, float16 or bfloat16
        Router logits of T tokens (0 and up) over E experts, any strides. NaN counts as -inf.
    top_k : int
        Experts per token in all.
    num_expert_group : int
        Contiguous groups G; divides E.
    topk_group : int, optional
        Groups kept per token, by `group_score`; all by default.
    balanced : bool
        True takes ``top_k / topk_group`` experts from every kept group (MoGE where all are kept).
        False takes the `top_k` best over the kept groups (DeepSeek; plain top-k with one group).
    scoring_func : "softmax", "sigmoid", "sqrt_softplus" or "identity"
        Scores from logits, in float32. Softmax runs over all E experts.
    group_score : "max" or "top2_sum"
        A group's score: its largest key, or the sum of its two largest.
    e_score_correction_bias : ``(E,)`` float, optional
        Added to the scores for the selection alone.
    renormalize : bool
        Divide the selected scores by their sum (plus 1e-20).
    routed_scaling_factor : float
        Multiplies all weights.
    expert_scale : ``(E,)`` float, optional
        Multiplies each weight by its expert's entry (Pangu's ``router_scale``).
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    Routing
        ``weights (T, top_k) float32`` and ``experts (T, top_k) int32``. Slots are ordered group by
        group and then by key where `balanced`, by key otherwise.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    Keys are the logits where no bias is given (every score grows with its logit) and score + bias
    in float32 where one is. Higher keys first, equal keys by lowest index, -0 = +0. A softmax over
    infinite maxima shares its mass equally among them. Differentiable in `logits` and
    `expert_scale`; the selection itself and the bias have no gradient.

    MoGE: Pangu Pro MoE, arXiv 2505.21411, eq. 5-7. Group-limited: DeepSeek-V2, arXiv 2405.04434;
    bias: DeepSeek-V3, arXiv 2412.19437, eq. 12-16.

    Examples
    --------
    >>> logits = torch.tensor([[1.0, 3.0, 2.0, 4.0, 0.0, 0.0, 0.0, 0.5]])
    >>> grouped_topk(logits, 2, num_expert_group=2, balanced=True).experts
    tensor([[3, 7]], dtype=torch.int32)
    >>> grouped_topk(logits, 2).experts
    tensor([[3, 1]], dtype=torch.int32)
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
    if backend == "auto" and not needs_grad(logits, expert_scale):
        # The inference path: no autograd registration in between (it alone costs microseconds).
        return Routing(*_grouped_topk.auto(*args))
    backends.must_be_known(backend)
    return Routing(*_grouped_topk.named(*args, backend))


def needs_grad(logits: Tensor | None, expert_scale: Tensor | None = None) -> bool:
    return torch.is_grad_enabled() and (
        (logits is not None and logits.requires_grad)
        or (expert_scale is not None and expert_scale.requires_grad)
    )


def routing_arguments(
    logits: Tensor,
    top_k: int,
    num_expert_group: int,
    topk_group: int | None,
    balanced: bool,
    scoring_func: str,
    group_score: str,
    e_score_correction_bias: Tensor | None,
    renormalize: bool,
    routed_scaling_factor: float,
    expert_scale: Tensor | None,
) -> tuple[Any, ...]:
    """All arguments of the operator in their order, validated."""
    args: tuple[Any, ...] = (
        logits,
        top_k,
        num_expert_group,
        num_expert_group if topk_group is None else topk_group,
        balanced,
        scoring_func,
        group_score,
        e_score_correction_bias,
        renormalize,
        routed_scaling_factor,
        expert_scale,
    )
    _validate(*args)
    return args


def _validate(
    logits: Tensor,
    top_k: int,
    groups: int,
    topk_group: int,
    balanced: bool,
    scoring_func: str,
    group_score: str,
    bias: Tensor | None,
    renormalize: bool,
    factor: float,
    expert_scale: Tensor | None,
) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a tensor, got {type(logits).__name__}")
    if logits.dim() != 2:
        raise ValueError(f"logits must be (tokens, experts), got shape {tuple(logits.shape)}")
    if logits.dtype not in DTYPES:
        raise TypeError(f"logits must be float32, float16 or bfloat16, got {logits.dtype}")
    experts = logits.shape[1]
    if not (type(top_k) is type(groups) is type(topk_group) is int):
        for name, value in {
            "top_k": top_k,
            "num_expert_group": groups,
            "topk_group": topk_group,
        }.items():
            operator.must_be_int(name, value)
    if groups < 1 or experts % groups:
        raise ValueError(
            f"num_expert_group must divide the number of experts, {experts}, got {groups}"
        )
    if not 1 <= topk_group <= groups:
        raise ValueError(
            f"topk_group must be between 1 and num_expert_group = {groups}, got {topk_group}"
        )
    available = experts // groups * topk_group
    if not 1 <= top_k <= available:
        raise ValueError(
            f"top_k must be between 1 and the {available} experts of the kept groups, got {top_k}"
        )
    if balanced and top_k % topk_group:
        raise ValueError(
            "balanced routing takes top_k / topk_group experts from each kept group: "
            f"top_k = {top_k} must be a multiple of topk_group = {topk_group}"
        )
    if scoring_func not in SCORING_FUNCS:
        raise ValueError(f"scoring_func must be one of {SCORING_FUNCS}, got {scoring_func!r}")
    if group_score not in GROUP_SCORES:
        raise ValueError(f"group_score must be one of {GROUP_SCORES}, got {group_score!r}")
    if not (type(balanced) is type(renormalize) is bool):
        for name, value in {"balanced": balanced, "renormalize": renormalize}.items():
            if type(value) is not bool:
                raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    must_be_finite("routed_scaling_factor", factor)
    if bias is not None:
        _validate_vector("e_score_correction_bias", bias, experts, logits.device)
    if expert_scale is not None:
        _validate_vector("expert_scale", expert_scale, experts, logits.device)


def must_be_finite(name: str, value: float) -> None:
    if not isinstance(value, NUMBERS):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not abs(value) <= LARGEST:  # math.isfinite would break the graph of torch.compile
        raise ValueError(f"{name} must be finite in float32, got {value}")


def _validate_vector(name: str, vector: Tensor, experts: int, device: torch.device) -> None:
    if not isinstance(vector, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(vector).__name__}")
    if vector.shape != (experts,):
        raise ValueError(f"{name} must be (experts,) = ({experts},), got {tuple(vector.shape)}")
    if vector.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {vector.dtype}")
    if vector.device != device:
        raise ValueError(f"{name} must be on {device} as the logits, got {vector.device}")


ARGUMENTS = (
    "Tensor logits, int top_k, int num_expert_group, int topk_group, bool balanced, "
    "str scoring_func, str group_score, Tensor? e_score_correction_bias, bool renormalize, "
    "float routed_scaling_factor, Tensor? expert_scale"
)


def empty_routing(logits: Tensor, top_k: int, *args: Any) -> tuple[Tensor, Tensor]:
    """Outputs of a routing, without values."""
    shape = (logits.shape[0], top_k)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


_grouped_topk = operator.define(
    "grouped_topk", ARGUMENTS, "(Tensor weights, Tensor experts)", empty_routing
)


def _empty_gradients(
    grad: Tensor, logits: Tensor, experts: Tensor, scoring_func: str, *args: Any
) -> tuple[Tensor, Tensor]:
    scale = args[-1]
    return torch.empty_like(logits, memory_format=torch.contiguous_format), (
        logits.new_empty(0, dtype=torch.float32) if scale is None else scale.new_empty(scale.shape)
    )


# From the upstream gradient of the weights: those of the logits, and of expert_scale where there
# is one (else an empty tensor).
backward = operator.define(
    "grouped_topk_backward",
    "Tensor grad, Tensor logits, Tensor experts, str scoring_func, bool renormalize, "
    "float routed_scaling_factor, Tensor? expert_scale",
    "(Tensor d_logits, Tensor d_expert_scale)",
    _empty_gradients,
    room="grouped_topk",
)


def save_routing(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    """For `routing_gradients`: `inputs` are ARGUMENTS, others, and the backend's name."""
    logits, _, _, _, _, scoring_func, _, _, renormalize, factor, expert_scale, *_ = inputs
    ctx.save_for_backward(logits, output[1], expert_scale)
    ctx.options = scoring_func, renormalize, factor
    ctx.backend, ctx.inputs = inputs[-1], len(inputs)
    ctx.mark_non_differentiable(*output[1:])


def routing_gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Gradients of an operator whose first outputs are weights and experts, by the same backend."""
    logits, experts, expert_scale = ctx.saved_tensors
    args = grad, logits, experts, *ctx.options, expert_scale
    if ctx.backend == "auto":
        d_logits, d_scale = backward.auto(*args)
    else:
        d_logits, d_scale = backward.named(*args, ctx.backend)
    return (
        d_logits,
        *(None,) * 9,
        None if expert_scale is None else d_scale,
        *(None,) * (ctx.inputs - 11),
    )


_grouped_topk.differentiable(routing_gradients, save_routing)
