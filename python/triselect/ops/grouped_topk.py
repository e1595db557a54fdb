"""`grouped_topk`: MoE routing over groups of experts."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.ops import backends

SCORING_FUNCS = ("softmax", "sigmoid", "sqrt_softplus", "identity")
GROUP_SCORES = ("max", "top2_sum")
INTEGERS = (int, torch.SymInt)  # symbolic where torch.compile makes them so
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
    if topk_group is None:
        topk_group = num_expert_group
    _validate(
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
    needs_grad = torch.is_grad_enabled() and (
        logits.requires_grad or (expert_scale is not None and expert_scale.requires_grad)
    )
    if backend == "auto" and not needs_grad:
        # The inference path: no autograd registration in between (it alone costs microseconds).
        return Routing(
            *_auto(
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
        )
    if backend not in backends.BACKENDS:
        raise ValueError(f"backend must be one of {backends.BACKENDS}, got {backend!r}")
    return Routing(
        *_named(
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
            backend,
        )
    )


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
            if isinstance(value, bool) or not isinstance(value, INTEGERS):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
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
    if not isinstance(factor, NUMBERS):
        raise TypeError(f"routed_scaling_factor must be a number, got {type(factor).__name__}")
    if not abs(factor) <= LARGEST:  # math.isfinite would break the graph of torch.compile
        raise ValueError(f"routed_scaling_factor must be finite in float32, got {factor}")
    if bias is not None:
        _validate_vector("e_score_correction_bias", bias, experts, logits.device)
    if expert_scale is not None:
        _validate_vector("expert_scale", expert_scale, experts, logits.device)


def _validate_vector(name: str, vector: Tensor, experts: int, device: torch.device) -> None:
    if not isinstance(vector, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(vector).__name__}")
    if vector.shape != (experts,):
        raise ValueError(f"{name} must be (experts,) = ({experts},), got {tuple(vector.shape)}")
    if vector.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {vector.dtype}")
    if vector.device != device:
        raise ValueError(f"{name} must be on {device} as the logits, got {vector.device}")


# One name, two overloads. The first is chosen by the dispatcher alone and has no autograd:
# inference. The second takes the backend's name, also "auto", and is differentiable.

_ARGUMENTS = (
    "Tensor logits, int top_k, int num_expert_group, int topk_group, bool balanced, "
    "str scoring_func, str group_score, Tensor? e_score_correction_bias, bool renormalize, "
    "float routed_scaling_factor, Tensor? expert_scale"
)
_library = torch.library.Library("triselect", "FRAGMENT")
_library.define(f"grouped_topk({_ARGUMENTS}) -> (Tensor weights, Tensor experts)")
_library.define(
    f"grouped_topk.backend({_ARGUMENTS}, str backend) -> (Tensor weights, Tensor experts)"
)
_auto = torch.ops.triselect.grouped_topk.default
_named = torch.ops.triselect.grouped_topk.backend


def _eager(*args: Any) -> tuple[Tensor, Tensor]:
    from triselect.kernels.grouped_topk import eager

    return eager.grouped_topk(*args)


def _triton(*args: Any) -> tuple[Tensor, Tensor]:
    from triselect.kernels.grouped_topk import triton

    return triton.grouped_topk(*args)


def _reference(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    from triselect.kernels.grouped_topk import reference

    def numpy(value: Any) -> Any:
        return value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value

    weights, experts = reference.grouped_topk(numpy(logits), *map(numpy, args))
    return (
        torch.from_numpy(weights).to(logits.device, torch.float32),
        torch.from_numpy(experts).to(logits.device),
    )


def _by_name(*args: Any) -> tuple[Tensor, Tensor]:
    *args, backend = args  # type: ignore[assignment]
    backends.require(backend, args[0].device)
    match backend:
        case "reference":
            return _reference(*args)
        case "eager":
            return _eager(*args)
        case "triton":
            return _triton(*args)
        case _:  # "auto", and "native", which is what the dispatcher has for CPU tensors
            return _auto(*args)


_library.impl("grouped_topk", _eager, "CompositeExplicitAutograd")
_library.impl("grouped_topk.backend", _by_name, "CompositeExplicitAutograd")
backends.missing_native()  # loads the extension where it was built: it registers itself for CPU
if backends.triton_installed():
    _library.impl("grouped_topk", _triton, "CUDA")


@torch.library.register_fake("triselect::grouped_topk", lib=_library)
@torch.library.register_fake("triselect::grouped_topk.backend", lib=_library)
def _fake(logits: Tensor, top_k: int, *args: Any) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], top_k)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    logits, _, _, _, _, scoring_func, _, _, renormalize, factor, expert_scale, _ = inputs
    ctx.save_for_backward(logits, output[1], expert_scale)
    ctx.options = scoring_func, renormalize, factor
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    from triselect.kernels.grouped_topk import eager

    logits, experts, expert_scale = ctx.saved_tensors
    d_logits, d_scale = eager.grouped_topk_backward(
        grad, logits, experts, *ctx.options, expert_scale
    )
    return d_logits, *(None,) * 9, d_scale, None


torch.library.register_autograd(
    "triselect::grouped_topk.backend", _backward, setup_context=_setup_context, lib=_library
)
