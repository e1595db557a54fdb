"""Grouped top-k routing in one Triton launch: a warp routes a few tokens, all in registers.

Same steps and names as `reference.py`. Floor: E * itemsize + 8 * top_k bytes of memory per token
where there are many, the launch itself where there are few. What keeps a kernel above it is the
selection, top_k rounds over all keys. Hence
- keys are int32 in the order of float32, and a key from a 16-bit logit holds its expert as well,
  so that one reduction finds both;
- many experts get two selections: the k largest keys are in the k vectors with the largest maxima,
  and only those go through the second.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.grouped_topk.triton.keys import PADDING, pack, unpack
from triselect.kernels.grouped_topk.triton.scores import EPSILON, load, mass, nan_last, score
from triselect.kernels.grouped_topk.triton.tile import (
    Router,
    across,
    add_up,
    axis,
    largest,
    plan,
    two_largest,
)


@triton.jit
def biased(x, bias, ids, stride, mask, top, total, SCORING: tl.constexpr):
    """The values that are compared: logits, or score + bias."""
    if bias is not None:
        # All the tile's pointers, though tokens share them: as many as the logits', they get the
        # logits' layout, and adding them moves nothing between lanes.
        ids = tl.broadcast_to(ids, x.shape)
        x = nan_last(score(x, top, total, SCORING) + load(bias, ids, stride, mask))
    return x


@triton.jit
def route_tile(
    token,
    logits,
    bias,
    scale,
    tokens,
    token_stride,
    expert_stride,
    bias_stride,
    scale_stride,
    factor,
    allowed,
    router: tl.constexpr,
):
    """Weights and experts of a tile of tokens, where they belong in ``(T, top_k)``, and which are
    there. Of the experts only those `allowed` are selected, where that is given.
    """
    R: tl.constexpr = router.r
    J: tl.constexpr = router.j
    G: tl.constexpr = router.g
    L: tl.constexpr = router.l
    V: tl.constexpr = router.v
    SCORING: tl.constexpr = router.scoring
    GROUPS: tl.constexpr = router.groups
    KEPT: tl.constexpr = router.kept
    SIZE: tl.constexpr = router.size
    TOP_K: tl.constexpr = router.top_k
    BALANCED: tl.constexpr = router.balanced
    PACKED: tl.constexpr = router.packed

    live = token < tokens
    row = logits + token * token_stride
    group = axis(R, 0) * G + axis(G, 3)
    first = (axis(J, 1) * L + axis(L, 4)) * V  # of a vector, in its group
    n = first + axis(V, 5)
    ids = group * SIZE + n  # [R, J, 1, G, L, V]
    real = (group < GROUPS) & (n < SIZE)
    x = load(row, ids, expert_stride, live & real)  # [R, J, T, G, L, V]

    top = 0.0
    total = 1.0
    if SCORING == "softmax" or bias is None:  # the other scores take NaN for -inf as it is
        x = nan_last(x)
    if SCORING == "softmax":
        top = across(tl.where(real, x, float("-inf")), tl.max, False)
        total = add_up(tl.where(real, mass(x, top), 0.0))

    values = biased(x, bias, ids, bias_stride, real, top, total, SCORING)
    if allowed is not None:
        real = real & tl.load(allowed + ids, mask=real, other=0).to(tl.int1)
    keys = pack(values, ids, real, PACKED)

    kept = group < GROUPS
    place = group
    if KEPT < GROUPS:
        if router.group_score == "max":
            rank = across(keys, tl.max, True)
        else:
            a = keys
            b = tl.full(keys.shape, PADDING, tl.int32)
            a, b = tl.reduce((a, b), 5, two_largest, keep_dims=True)
            a, b = tl.reduce((a, b), 1, two_largest, keep_dims=True)
            a, b = tl.reduce((a, b), 4, two_largest, keep_dims=True)
            alone = b == PADDING
            a, b = unpack(a, PACKED), unpack(b, PACKED)
            if bias is None:
                a, b = score(a, top, total, SCORING), score(b, top, total, SCORING)
            if allowed is not None:
                a += tl.where(alone, 0.0, b)
            elif SIZE > 1:
                a += b
            rank = pack(nan_last(a), group, kept, False)
        KEPT_SLOTS: tl.constexpr = triton.next_power_of_2(KEPT)
        _, kept_groups, rest = largest(rank, group, KEPT, KEPT_SLOTS, False, False)
        kept = kept & (rest == PADDING)
        keys = tl.where(kept, keys, PADDING)
        lower = (kept_groups < group) & (axis(KEPT_SLOTS, 4) < KEPT)
        place = tl.sum(lower.to(tl.int32), 4, keep_dims=True)

    if router.two_stages and allowed is None:  # a vector may have nothing that is allowed
        best = tl.max(keys, 5, keep_dims=True)  # [R, J, T, G, L, 1]
        CANDIDATES: tl.constexpr = triton.next_power_of_2(TOP_K)
        _, of, _ = largest(best, group * SIZE + first, TOP_K, CANDIDATES, PACKED, False)
        first = of // SIZE * SIZE if GROUPS > 1 else 0
        n = (of - first) // V * V + axis(V, 5)
        ids = first + n  # [1, 1, T, 1, TOP_K, V]
        real = (axis(CANDIDATES, 4) < TOP_K) & (n < SIZE)
        x = nan_last(load(row, ids, expert_stride, live & real))
        values = biased(x, bias, ids, bias_stride, real, top, total, SCORING)
        keys = pack(values, ids, real, PACKED)

    EACH: tl.constexpr = TOP_K // KEPT if BALANCED else TOP_K
    SLOTS: tl.constexpr = triton.next_power_of_2(EACH)
    slot = axis(SLOTS, 4)
    top_keys, top_ids, _ = largest(keys, ids, EACH, SLOTS, PACKED, BALANCED)
    out = live & (slot < EACH)  # [1, 1, T, 1, SLOTS, 1]
    at = token * TOP_K + slot
    if BALANCED:
        out = out & kept  # [R, 1, T, G, SLOTS, 1]
        at += place * EACH

    x = unpack(top_keys, PACKED)
    if bias is not None:
        x = nan_last(load(row, top_ids, expert_stride, out))
    w = tl.where(out, score(x, top, total, SCORING), 0.0)
    if router.renormalize:
        w = w / (add_up(w) + EPSILON)
    w *= tl.cast(factor, tl.float32)
    if scale is not None:
        w *= load(scale, top_ids, scale_stride, out)
    return w, top_ids, at, out


@triton.jit(do_not_specialize=["tokens"])
def route(
    logits,
    bias,
    scale,
    tokens,
    token_stride,
    expert_stride,
    bias_stride,
    scale_stride,
    factor,
    allowed,
    weights,
    experts,
    router: tl.constexpr,
):
    w, ids, at, out = route_tile(
        tl.program_id(0).to(tl.int64) * router.t + axis(router.t, 2),
        logits,
        bias,
        scale,
        tokens,
        token_stride,
        expert_stride,
        bias_stride,
        scale_stride,
        factor,
        allowed,
        router,
    )
    tl.store(weights + at, w, mask=out)
    tl.store(experts + at, ids, mask=out)


class Launch(NamedTuple):
    """What every kernel that routes is launched with."""

    inputs: tuple[Any, ...]  # its first arguments
    router: Router
    warps: int
    weights: Tensor
    experts: Tensor

    def wider(self, warps: int) -> tuple[Router, int]:
        """The router with a tile of more tokens, for at least that many warps; the same bits."""
        more = max(1, warps // self.warps)
        return self.router._replace(t=self.router.t * more), self.warps * more

    def route(self, allowed: Tensor | None = None) -> None:
        """Routes, over the experts `allowed` ``(E,)`` alone where that is given."""
        route[(triton.cdiv(len(self.weights), self.router.t),)](
            *self.inputs,
            allowed,
            self.weights,
            self.experts,
            self.router,
            num_warps=self.warps,
            enable_fp_fusion=False,
        )


def prepare(
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
) -> Launch:
    tokens, experts = logits.shape
    bias, scale = e_score_correction_bias, expert_scale
    router, warps = plan(
        experts,
        logits.element_size(),
        top_k,
        num_expert_group,
        topk_group,
        balanced,
        scoring_func,
        group_score,
        bias is not None,
        renormalize,
    )
    inputs = (
        logits,
        bias,
        scale,
        tokens,
        logits.stride(0),
        logits.stride(1),
        0 if bias is None else bias.stride(0),
        0 if scale is None else scale.stride(0),
        routed_scaling_factor,
    )
    weights = logits.new_empty((tokens, top_k), dtype=torch.float32)
    return Launch(inputs, router, warps, weights, torch.empty_like(weights, dtype=torch.int32))


def grouped_topk(logits: Tensor, top_k: int, *options: Any) -> tuple[Tensor, Tensor]:
    """Weights ``(T, top_k)`` float32 and experts ``(T, top_k)`` int32 of logits ``(T, E)``."""
    launch = prepare(logits, top_k, *options)
    if len(logits):
        with torch.cuda.device_of(logits):
            launch.route()
    return launch.weights, launch.experts
