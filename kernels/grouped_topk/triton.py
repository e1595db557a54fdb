"""Grouped top-k routing in one Triton launch: a warp routes a few tokens, all in registers.

Same steps and names as `reference.py`. Floor: E * itemsize + 8 * top_k bytes of memory per token
where there are many, the launch itself where there are few. What keeps a kernel above it is the
selection, top_k rounds over all keys. Hence
- keys are int32 in the order of float32, and a key from a 16-bit logit holds its expert in the bits
  that such a logit leaves free, so that one reduction finds both;
- many experts get two selections: the k largest keys are in the k vectors with the largest maxima,
  and only those go through the second.

Tiles are ``[R, J, T, G, L, V]``: token t, and of its group r * G + g, expert (j * L + l) * V + v.
Neighbouring lanes of a warp read the vectors of V experts along (T, G, L), and hold R * J of them.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

EPSILON = tl.constexpr(1e-20)
PADDING = tl.constexpr(-(2**31))  # below the key of every expert, also that of -inf
INDEX = tl.constexpr(2**13 - 1)  # the low bits that float32 does not use for 16-bit floats
LOG2_E = tl.constexpr(1.4426950408889634)
LOG2_E_REST = tl.constexpr(1.925963033500e-08)  # LOG2_E - float32(LOG2_E)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def nan_last(x):
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def exp(x):
    """exp(x) of x <= 0, right to the last place or two of float32; NaN gives 0."""
    x = tl.where(x > -104.0, x, -104.0)
    t = x * LOG2_E
    rest = tl.fma(x, LOG2_E_REST, tl.fma(x, LOG2_E, -t))  # what rounding t lost
    e = tl.exp2(t)
    return tl.fma(e, rest * LN_2, e)


@triton.jit
def score(x, top, total, SCORING: tl.constexpr):
    if SCORING == "softmax":
        return tl.where(x == top, 1.0, exp(x - top)) / total  # inf - inf would be NaN
    elif SCORING == "sigmoid":
        e = exp(-tl.abs(x))
        q = tl.rsqrt(1.0 + e)
        q = q * q
        q = tl.fma(tl.fma(-1.0 - e, q, 1.0), q, q)  # Newton's step to 1 / (1 + e)
        return tl.where(x >= 0, 1.0, e) * q
    elif SCORING == "sqrt_softplus":
        e = exp(-tl.abs(x))
        z = e / (2.0 + e)  # ln(1 + e) = 2 artanh(z) = 2 (z + z^3 / 3 + z^5 / 5 + ...), z <= 1/3
        series = 1.0 / 15
        for i in tl.static_range(7):
            series = tl.fma(series, z * z, 1.0 / (13 - 2 * i))
        return tl.sqrt(tl.fma(2.0 * z, series, tl.where(x > 0, x, 0.0)))
    else:
        return x


@triton.jit
def pack(value, ids, real, PACKED: tl.constexpr):
    """Keys: float32 as int32 in the same order, -0 as +0."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    if PACKED:
        key = key & ~INDEX | (INDEX - ids)
    return tl.where(real, key, PADDING)


@triton.jit
def unpack(key, PACKED: tl.constexpr):
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    if PACKED:
        bits = bits & ~INDEX
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def axis(n: tl.constexpr, AXIS: tl.constexpr):
    """0 .. n - 1 along one axis of the tile."""
    x = tl.arange(0, n)
    for i in tl.static_range(6):
        if i != AXIS:
            x = tl.expand_dims(x, i)
    return x


@triton.jit
def across(x, fold: tl.constexpr, GROUPWISE: tl.constexpr):
    """Fold each token's part of the tile, or each of its groups', registers before lanes."""
    x = fold(fold(x, 5, keep_dims=True), 1, keep_dims=True)
    if not GROUPWISE:
        x = fold(x, 0, keep_dims=True)
    x = fold(x, 4, keep_dims=True)
    return x if GROUPWISE else fold(x, 3, keep_dims=True)


@triton.jit
def add_up(x):
    """Sum of each token's part of the tile, in pairs: the same bits whatever the tile's layout."""
    T: tl.constexpr = x.shape[2]
    x = x.permute(2, 3, 4, 0, 1, 5).reshape(T, x.numel // T)  # registers first, then lanes
    for _ in tl.static_range(20):
        if x.shape[1] > 1:
            x = tl.sum(x.reshape(T, x.shape[1] // 2, 2), 2)
    return x.reshape(1, 1, T, 1, 1, 1)


@triton.jit
def largest(keys, ids, K: tl.constexpr, SLOTS: tl.constexpr, PACKED, GROUPWISE: tl.constexpr):
    """The K largest keys, of equal ones the lowest id first, along axis 4; their ids; the rest."""
    R: tl.constexpr = keys.shape[0] if GROUPWISE else 1
    G: tl.constexpr = keys.shape[3] if GROUPWISE else 1
    slot = axis(SLOTS, 4)
    top_keys = tl.zeros((R, 1, keys.shape[2], G, SLOTS, 1), tl.int32)
    top_ids = top_keys
    for k in range(K):
        top = across(keys, tl.max, GROUPWISE)
        if PACKED:
            first = INDEX - (top & INDEX)
            keys = tl.where(keys == top, PADDING, keys)
        else:
            first = across(tl.where(keys == top, ids, 2**31 - 1), tl.min, GROUPWISE)
            keys = tl.where(ids == first, PADDING, keys)
        top_keys = tl.where(slot == k, top, top_keys)
        top_ids = tl.where(slot == k, first, top_ids)
    return top_keys, top_ids, keys


@triton.jit
def two_largest(a, b, c, d):
    return tl.maximum(a, c), tl.maximum(tl.minimum(a, c), tl.maximum(b, d))


@triton.jit
def load(pointer, ids, stride, mask):
    return tl.load(pointer + ids.to(tl.int64) * stride, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def biased(x, bias, ids, stride, mask, top, total, SCORING: tl.constexpr):
    """The values that are compared: logits, or score + bias."""
    if bias is not None:
        # All the tile's pointers, though tokens share them: as many as the logits', they get the
        # logits' layout, and adding them moves nothing between lanes.
        ids = tl.broadcast_to(ids, x.shape)
        x = nan_last(score(x, top, total, SCORING) + load(bias, ids, stride, mask))
    return x


@triton.jit(do_not_specialize=["tokens"])
def route(
    logits,
    bias,
    scale,
    weights,
    experts,
    tokens,
    token_stride,
    expert_stride,
    bias_stride,
    scale_stride,
    factor,
    SCORING: tl.constexpr,
    GROUP_SCORE: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BALANCED: tl.constexpr,
    GROUPS: tl.constexpr,
    KEPT: tl.constexpr,
    SIZE: tl.constexpr,
    TOP_K: tl.constexpr,
    PACKED: tl.constexpr,
    TWO_STAGES: tl.constexpr,
    R: tl.constexpr,
    J: tl.constexpr,
    T: tl.constexpr,
    G: tl.constexpr,
    L: tl.constexpr,
    V: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * T + axis(T, 2)
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
        e = tl.where(x == top, 1.0, exp(x - top))
        total = add_up(tl.where(real, e, 0.0))

    values = biased(x, bias, ids, bias_stride, real, top, total, SCORING)
    keys = pack(values, ids, real, PACKED)

    kept = group < GROUPS
    place = group
    if KEPT < GROUPS:
        if GROUP_SCORE == "max":
            rank = across(keys, tl.max, True)
        else:
            a = keys
            b = tl.full(keys.shape, PADDING, tl.int32)
            a, b = tl.reduce((a, b), 5, two_largest, keep_dims=True)
            a, b = tl.reduce((a, b), 1, two_largest, keep_dims=True)
            a, b = tl.reduce((a, b), 4, two_largest, keep_dims=True)
            a, b = unpack(a, PACKED), unpack(b, PACKED)
            if bias is None:
                a, b = score(a, top, total, SCORING), score(b, top, total, SCORING)
            if SIZE > 1:
                a += b
            rank = pack(nan_last(a), group, kept, False)
        KEPT_SLOTS: tl.constexpr = triton.next_power_of_2(KEPT)
        _, kept_groups, rest = largest(rank, group, KEPT, KEPT_SLOTS, False, False)
        kept = kept & (rest == PADDING)
        keys = tl.where(kept, keys, PADDING)
        lower = (kept_groups < group) & (axis(KEPT_SLOTS, 4) < KEPT)
        place = tl.sum(lower.to(tl.int32), 4, keep_dims=True)

    if TWO_STAGES:
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
    if RENORMALIZE:
        w = w / (add_up(w) + EPSILON)
    w *= tl.cast(factor, tl.float32)
    if scale is not None:
        w *= load(scale, top_ids, scale_stride, out)
    tl.store(weights + at, w, mask=out)
    tl.store(experts + at, top_ids, mask=out)


@cache
def plan(
    experts: int, itemsize: int, top_k: int, groups: int, kept: int, balanced: bool
) -> tuple[dict[str, Any], int]:
    """The tile and the number of warps for a router."""
    size = experts // groups
    n, g = triton.next_power_of_2(size), triton.next_power_of_2(groups)
    # Lanes of a token: 8 of them read a line of 128 bytes; more where 8 would hold too many keys.
    lanes = max(8, triton.next_power_of_2(experts) // 64)
    vector = min(16 // itemsize, n)
    in_group = min(lanes, n // vector)
    in_row = min(lanes // in_group, g)
    vectors = g // in_row * (n // (in_group * vector))  # of a token, in a lane
    held = vectors * vector  # keys
    candidates = vectors + top_k * vector // lanes
    tile = {
        "R": g // in_row,
        "J": n // (in_group * vector),
        "T": max(1, 32 // (in_group * in_row)) * max(1, 16 // held),
        "G": in_row,
        "L": in_group,
        "V": vector,
        "TWO_STAGES": not balanced
        and 2 * candidates <= held
        and top_k <= kept * triton.cdiv(size, vector),
    }
    return tile, max(1, in_group * in_row // 32)


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
) -> tuple[Tensor, Tensor]:
    """Weights ``(T, top_k)`` float32 and experts ``(T, top_k)`` int32 of logits ``(T, E)``."""
    tokens, experts = logits.shape
    weights = logits.new_empty((tokens, top_k), dtype=torch.float32)
    chosen = logits.new_empty((tokens, top_k), dtype=torch.int32)
    if tokens == 0:
        return weights, chosen

    groups, kept = num_expert_group, topk_group
    balanced = balanced and groups > 1
    if kept == groups and not balanced:
        groups = kept = 1
    bias, scale = e_score_correction_bias, expert_scale
    tile, warps = plan(experts, logits.element_size(), top_k, groups, kept, balanced)
    with torch.cuda.device_of(logits):
        route[(triton.cdiv(tokens, tile["T"]),)](
            logits,
            bias,
            scale,
            weights,
            chosen,
            tokens,
            logits.stride(0),
            logits.stride(1),
            0 if bias is None else bias.stride(0),
            0 if scale is None else scale.stride(0),
            routed_scaling_factor,
            SCORING=scoring_func,
            GROUP_SCORE=group_score if kept < groups else "max",
            RENORMALIZE=renormalize,
            BALANCED=balanced,
            GROUPS=groups,
            KEPT=kept,
            SIZE=experts // groups,
            TOP_K=top_k,
            PACKED=logits.element_size() == 2 and bias is None and experts <= 2**13,
            num_warps=warps,
            enable_fp_fusion=False,
            **tile,
        )
    return weights, chosen
