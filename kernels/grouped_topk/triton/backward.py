"""Gradients of grouped top-k routing in one Triton launch.

Same steps and names as `reference.py`: with p the scores of the chosen experts, q = p / sum(p)
where renormalised and p where not, g = c * dL/dw:

    dq = expert_scale * g                       dL/dexpert_scale = sum over tokens of g * q
    dp = (dq - <dq, q>) / sum(p) | dq
    dx = -s * <dp, p>, and dp * p more at the chosen    softmax, dense over all E
       | dp * s'(x) at the chosen, 0 elsewhere          the other scores

Floor: 2 * E * itemsize + 8 * top_k bytes of memory per token (without softmax E * itemsize less:
only what is written is dense), and one launch; with expert_scale a second one, which adds up what
each program has summed over its own tokens: the same bits on every run, where atomics would not be.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.grouped_topk.triton.scores import (
    EPSILON,
    load,
    mass,
    nan_last,
    score,
    sum_in_pairs,
)

TILE = 512  # logits that a program holds: 4 in a thread
PROGRAMS = 1024  # at most, where each writes a row of E sums: some for every processor of a GPU


@triton.jit
def slope(x, p, SCORING: tl.constexpr):
    """Derivative of a score p by its logit x; of a softmax what does not go through its sum."""
    if SCORING == "softmax":
        return p
    elif SCORING == "sigmoid":
        return p * (1.0 - p)
    elif SCORING == "sqrt_softplus":
        return score(x, 0.0, 1.0, "sigmoid") / tl.maximum(2.0 * p, EPSILON)
    else:
        return tl.full(p.shape, 1.0, tl.float32)


@triton.jit(do_not_specialize=["tokens"])
def backward(
    grad,
    logits,
    experts,
    scale,
    d_logits,
    d_scale,
    tokens,
    grad_token_stride,
    grad_slot_stride,
    token_stride,
    expert_stride,
    experts_token_stride,
    experts_slot_stride,
    scale_stride,
    factor,
    SCORING: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    T: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
):
    e = tl.arange(0, E)[None, :]
    slot = tl.arange(0, K)[None, :]
    d_scale_here = tl.zeros((T, E), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(tokens, T), tl.num_programs(0)):
        token = tl.cast(tile, tl.int64) * T + tl.arange(0, T)[:, None]
        live = token < tokens
        row = logits + token * token_stride

        at = experts + token * experts_token_stride + slot * experts_slot_stride
        chosen = tl.load(at, mask=live & (slot < TOP_K), other=-1)
        chosen = tl.where(chosen < EXPERTS, chosen, -1)
        real = chosen >= 0
        x = nan_last(load(row, chosen, expert_stride, real))  # [T, K]
        at = grad + token * grad_token_stride + slot * grad_slot_stride
        g = tl.load(at, mask=real, other=0.0).to(tl.float32) * tl.cast(factor, tl.float32)

        top = 0.0
        total = 1.0
        if SCORING == "softmax":
            there = live & (e < EXPERTS)
            row_x = nan_last(load(row, e, expert_stride, there))  # [T, E]
            top = tl.max(tl.where(there, row_x, float("-inf")), 1, keep_dims=True)
            total = sum_in_pairs(tl.where(there, mass(row_x, top), 0.0))
        p = tl.where(real, score(x, top, total, SCORING), 0.0)

        q = p
        if RENORMALIZE:
            sum_p = sum_in_pairs(p) + EPSILON
            q = p / sum_p
        dq = g
        if scale is not None:
            dq = g * load(scale, chosen, scale_stride, real)
        dp = dq
        if RENORMALIZE:
            dp = (dq - sum_in_pairs(dq * q)) / sum_p
        # The gradient is stored densely, then again where an expert was chosen. What one that was
        # chosen twice gets from both is added up first, so that both store the same.
        dx = tl.zeros((T, E), tl.float32)
        d_chosen = dp * slope(x, p, SCORING)
        twice = chosen[:, :, None] == chosen[:, None, :]
        d_twice = tl.where(twice, d_chosen[:, None, :], 0.0).reshape(T * K, K)
        d_twice = sum_in_pairs(d_twice).reshape(T, K)
        if SCORING == "softmax":
            through_total = sum_in_pairs(tl.where(real, d_chosen, 0.0))
            dx = -score(row_x, top, total, SCORING) * through_total
            d_twice -= p * through_total
        tl.store(d_logits + token * EXPERTS + e, dx, mask=live & (e < EXPERTS))
        tl.debug_barrier()
        tl.store(d_logits + token * EXPERTS + chosen, d_twice, mask=real)

        if scale is not None:
            for k in range(TOP_K):
                here = slot == k
                hit = e == tl.max(tl.where(here, chosen, -1), 1, keep_dims=True)
                d_r = tl.sum(tl.where(here, g * q, 0.0), 1, keep_dims=True)
                d_scale_here += tl.where(hit, d_r, 0.0)

    if scale is not None:
        e = tl.arange(0, E)
        at = d_scale + tl.program_id(0) * EXPERTS + e
        tl.store(at, sum_in_pairs(d_scale_here.trans()).reshape(E), mask=e < EXPERTS)


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

    Without `expert_scale` the second is empty. Experts out of range, as -1 is, have none.
    """
    tokens, num_experts = logits.shape
    top_k = experts.shape[1]
    d_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    width = triton.next_power_of_2(num_experts)
    rows = max(1, TILE // width)
    programs = triton.cdiv(tokens, rows)
    d_scale = logits.new_empty(0, dtype=torch.float32)
    if expert_scale is not None:
        programs = min(programs, PROGRAMS)
        d_scale = logits.new_empty((programs, num_experts), dtype=torch.float32)
    if tokens:
        with torch.cuda.device_of(logits):
            backward[(programs,)](
                grad,
                logits,
                experts,
                expert_scale,
                d_logits,
                d_scale,
                tokens,
                *grad.stride(),
                *logits.stride(),
                *experts.stride(),
                0 if expert_scale is None else expert_scale.stride(0),
                routed_scaling_factor,
                SCORING=scoring_func,
                RENORMALIZE=renormalize,
                EXPERTS=num_experts,
                TOP_K=top_k,
                T=rows,
                E=width,
                K=triton.next_power_of_2(top_k),
                num_warps=min(max(4, width // 128), 32),
                enable_fp_fusion=False,
            )
    if expert_scale is not None:
        d_scale = d_scale.sum(0).to(expert_scale.dtype)
    return d_logits, d_scale
