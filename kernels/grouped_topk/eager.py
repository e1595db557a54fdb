"""Grouped top-k routing in plain PyTorch: any device, differentiable, traceable.

Same steps and names as `reference.py`, in float32.
"""

from math import inf

import torch
from torch import Tensor

EPSILON = 1e-20


def scores(x: Tensor, scoring_func: str) -> Tensor:
    match scoring_func:
        case "softmax":
            # inf - inf is no difference: infinite maxima share the mass equally.
            difference = x - x.detach().amax(-1, keepdim=True)
            return difference.nan_to_num(nan=0.0, neginf=-inf).softmax(-1)
        case "sigmoid":
            return wide(x).sigmoid().float()
        case "sqrt_softplus":
            return torch.logaddexp(wide(x), x.new_zeros(())).sqrt().float()
        case _:
            return x


def wide(x: Tensor) -> Tensor:
    """On the CPU, torch's vector code and its scalar code for the rest of an array differ in the
    last bit, so that equal logits would not tie. Rounded from float64 they do."""
    return x.double() if x.is_cpu else x


def nan_last(keys: Tensor) -> Tensor:
    return keys.nan_to_num(nan=-inf, posinf=inf, neginf=-inf)


def first_largest(keys: Tensor, k: int, out: Tensor | None = None) -> Tensor:
    """Indices of the ``k`` largest keys, largest first, ties to the lowest index.

    Those that are `out` come after all others.

    torch.topk leaves the order of ties open, so it is given keys without ties: the float32 bits,
    made to order like integers, above the index counted downwards.
    """
    n = keys.shape[-1]
    if k == 1 and out is None:
        return keys.argmax(-1, keepdim=True)  # documented to return the first maximum
    bits = keys.masked_fill(keys == 0, 0.0).view(torch.int32)  # -0 = +0
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    countdown = torch.arange(n - 1, -1, -1, device=keys.device)
    packed = bits.to(torch.int64) * 2**32 + countdown
    if out is not None:
        packed = packed.masked_fill(out, -(2**63))
    return packed.topk(k, dim=-1).indices


def group_scores(keys: Tensor, values: Tensor, group_score: str, out: Tensor | None) -> Tensor:
    """Of what is not `out`; where that leaves one of a group, it is the sum of the two."""
    if out is not None:
        keys, values = keys.masked_fill(out, -inf), values.masked_fill(out, -inf)
    if group_score == "max":
        return keys.amax(-1)
    two = values.topk(min(2, values.shape[-1]), dim=-1).values
    if out is not None and two.shape[-1] == 2:
        alone = (~out).sum(-1) < 2
        two = torch.stack((two[..., 0], two[..., 1].masked_fill(alone, 0.0)), -1)
    return nan_last(two.sum(-1))


def select(
    x: Tensor,
    s: Tensor,
    top_k: int,
    num_expert_group: int,
    topk_group: int,
    balanced: bool,
    group_score: str,
    bias: Tensor | None,
    allowed: Tensor | None,
) -> Tensor:
    """Selected experts ``(T, top_k)`` int64, from logits `x` and their scores `s`."""
    tokens, experts = x.shape
    groups, size = num_expert_group, experts // num_expert_group
    keys = x if bias is None else nan_last(s + bias.float())
    keys = keys.reshape(tokens, groups, size)
    out = None if allowed is None else ~allowed.view(groups, size)
    kept = torch.arange(groups, device=x.device)
    if topk_group < groups:
        values = s.reshape(tokens, groups, size) if bias is None else keys
        rank = group_scores(keys, values, group_score, out)
        kept = first_largest(rank, topk_group).sort(-1).values  # ascending: ties stay in order
        keys = keys.gather(1, kept[:, :, None].expand(tokens, topk_group, size))
        out = None if out is None else out[kept]
    kept = kept.expand(tokens, topk_group)

    if balanced:
        picked = first_largest(keys, top_k // topk_group, out)  # (T, topk_group, K')
        return (picked + size * kept[:, :, None]).reshape(tokens, top_k)
    if out is not None:
        out = out.expand_as(keys).reshape(tokens, topk_group * size)
    picked = first_largest(keys.reshape(tokens, topk_group * size), top_k, out)
    group = picked // size
    return picked + size * (kept.gather(1, group) - group)


def grouped_topk(
    logits: Tensor,
    top_k: int,
    num_expert_group: int,
    topk_group: int,
    balanced: bool,
    scoring_func: str,
    group_score: str,
    e_score_correction_bias: Tensor | None,
    renormalize: bool,
    routed_scaling_factor: float,
    expert_scale: Tensor | None,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights ``(T, top_k)`` float32 and experts ``(T, top_k)`` int32 of logits ``(T, E)``.

    `allowed` ``(E,)`` bool leaves experts out of the selection, not of the scores.
    """
    x = nan_last(logits.float())
    s = scores(x, scoring_func)
    with torch.no_grad():
        experts = select(
            x,
            s,
            top_k,
            num_expert_group,
            topk_group,
            balanced,
            group_score,
            e_score_correction_bias,
            allowed,
        )
    weights = s.gather(1, experts)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + EPSILON)
    weights = weights * routed_scaling_factor
    if expert_scale is not None:
        weights = weights * expert_scale.float()[experts]
    return weights, experts.to(torch.int32)


def grouped_topk_backward(
    grad: Tensor,
    logits: Tensor,
    experts: Tensor,
    scoring_func: str,
    renormalize: bool,
    routed_scaling_factor: float,
    expert_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits ``(T, E)`` and of `expert_scale` ``(E,)``, from ``grad = dL/dw``.

    Without `expert_scale` the second is empty. Experts of -1, which no token chose, have none.

    With p = s[experts] and q = p / sum(p) (q = p without renormalising), w = c * r[experts] * q:

        dq = c * r * grad            dr = sum over tokens of c * q * grad
        dp = (dq - <dq, q>) / sum(p)
        dx = s * (ds - <ds, s>)      softmax, ds = dp put at the selected experts: dense over all E
           | dp * s'(x)              element-wise scores: only where selected
    """
    x = nan_last(logits.float())
    chosen = experts >= 0
    index = experts.long().clamp_min(0)
    s = scores(x, scoring_func)
    p = s.gather(1, index).masked_fill(~chosen, 0.0)
    total = p.sum(-1, keepdim=True) + EPSILON
    q = p / total if renormalize else p
    grad = (grad * routed_scaling_factor).masked_fill(~chosen, 0.0)

    d_scale = x.new_empty(0)
    dq = grad
    if expert_scale is not None:
        d_scale = torch.zeros_like(expert_scale, dtype=torch.float32)
        d_scale = d_scale.index_put((index,), grad * q, accumulate=True).to(expert_scale.dtype)
        dq = grad * expert_scale.float()[index]
    dp = (dq - (dq * q).sum(-1, keepdim=True)) / total if renormalize else dq

    match scoring_func:
        case "softmax":
            dx = -s * (dp * p).sum(-1, keepdim=True)
            return dx.scatter_add(1, index, dp * p).to(logits.dtype), d_scale
        case "sigmoid":
            slope = p * (1 - p)
        case "sqrt_softplus":
            slope = scores(x.gather(1, index), "sigmoid") / (2 * p).clamp_min(EPSILON)
        case _:
            slope = torch.ones_like(p)
    dx = (dp * slope).masked_fill(~chosen, 0.0)
    return torch.zeros_like(x).scatter_add(1, index, dx).to(logits.dtype), d_scale
