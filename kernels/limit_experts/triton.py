"""Routing within a budget of experts in three Triton launches, or in one for few tokens.

1. Route, and count the votes of each segment of tokens.
2. One program adds up the votes and keeps the most-voted experts: those whose rank is at least that
   of the last one kept, which is found bit by bit.
3. Route again, with the other experts' keys below those of all that are kept.

Floor: the logits twice, E * itemsize, and 8 * top_k bytes of memory per token where there are many,
and the launches where there are few. One program can do all three for a few tokens.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.grouped_topk.triton.route import prepare, route_tile
from triselect.kernels.grouped_topk.triton.segments import route_segments
from triselect.kernels.grouped_topk.triton.tile import axis

ONE_LAUNCH_TILES = 2  # routed twice by one program, one after the other
WARPS = 8
ADDED = 2**13  # votes of segments added up at a time


@triton.jit
def kth_largest(ranks, k, bits):
    """Of each row, the largest number of so many bits that k of its ranks reach."""
    least = tl.zeros((ranks.shape[0], 1), tl.int64)
    for bit in range(bits):
        more = least | (tl.full((1, 1), 1, tl.int64) << (bits - 1 - bit))
        enough = tl.sum((ranks >= more).to(tl.int32), 1, keep_dims=True) >= k
        least = tl.where(enough, more, least)
    return least


@triton.jit
def choose_experts(
    counts,
    segments,
    kept,
    budget,
    need,
    bits,
    PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    READ: tl.constexpr,
):
    """Adds up the votes and stores which experts are kept."""
    g = tl.arange(0, G)[:, None]
    n = tl.arange(0, N)[None, :]
    real = (g < GROUPS) & (n < SIZE)
    e = g * SIZE + n
    votes = tl.zeros((G, N), tl.int32)
    for first in range(0, segments, READ):
        s = (first + tl.arange(0, READ))[:, None, None]
        there = (s < segments) & real[None, :, :]
        some = tl.load(counts + s * (GROUPS * SIZE) + e[None, :, :], mask=there, other=0)
        votes += tl.sum(some, 0)

    # No two are equal: of equal votes the lowest index is first.
    ranks = votes.to(tl.int64) * (GROUPS * SIZE) + (GROUPS * SIZE - 1 - e)
    ranks = tl.where(real, ranks, -1)
    keep = ranks >= kth_largest(ranks, budget if PER_GROUP else need, bits)
    if not PER_GROUP:
        rest = tl.where(keep, -1, ranks).reshape(1, G * N)
        more = rest >= kth_largest(rest, budget - GROUPS * need, bits)
        keep = keep | more.reshape(G, N)
    tl.store(kept + e, keep & real, mask=real)


@triton.jit(do_not_specialize=["segments", "budget", "need", "bits"])
def choose(
    counts,
    segments,
    kept,
    budget,
    need,
    bits,
    PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    READ: tl.constexpr,
):
    choose_experts(counts, segments, kept, budget, need, bits, PER_GROUP, GROUPS, SIZE, G, N, READ)


@triton.jit(do_not_specialize=["tokens", "budget", "need", "bits"])
def limit(
    logits,
    bias,
    scale,
    tokens,
    token_stride,
    expert_stride,
    bias_stride,
    scale_stride,
    factor,
    weights,
    experts,
    counts,
    kept,
    budget,
    need,
    bits,
    PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    READ: tl.constexpr,
    router: tl.constexpr,
):
    """All three steps by one program, which leaves each to the next in memory."""
    BINS: tl.constexpr = triton.next_power_of_2(GROUPS * SIZE)
    votes = tl.zeros((BINS,), tl.int32)
    for first in range(0, tokens, router.t):
        w, ids, at, out = route_tile(
            tl.cast(first, tl.int64) + axis(router.t, 2),
            logits,
            bias,
            scale,
            tokens,
            token_stride,
            expert_stride,
            bias_stride,
            scale_stride,
            factor,
            None,
            router,
        )
        votes += tl.histogram(ids.reshape(ids.numel), BINS, mask=out.reshape(ids.numel))
    e = tl.arange(0, BINS)
    tl.store(counts + e, votes, mask=e < GROUPS * SIZE)
    tl.debug_barrier()
    choose_experts(counts, 1, kept, budget, need, bits, PER_GROUP, GROUPS, SIZE, G, N, READ)
    tl.debug_barrier()
    for first in range(0, tokens, router.t):
        w, ids, at, out = route_tile(
            tl.cast(first, tl.int64) + axis(router.t, 2),
            logits,
            bias,
            scale,
            tokens,
            token_stride,
            expert_stride,
            bias_stride,
            scale_stride,
            factor,
            kept,
            router,
        )
        tl.store(weights + at, w, mask=out)
        tl.store(experts + at, ids, mask=out)


def limit_experts(logits: Tensor, top_k: int, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and experts ``(T, top_k)`` and the experts kept, ``(E,)`` bool.

    `arguments` are those of `grouped_topk`, then `budget` and `per_group`.
    """
    *options, budget, per_group = arguments
    num_expert_group, topk_group, *_ = options
    routing = prepare(logits, top_k, *options)
    tokens, num_experts = logits.shape
    kept = logits.new_empty(num_experts, dtype=torch.bool)
    need = -(-top_k // topk_group)
    bits = ((tokens + 1) * num_experts).bit_length()  # of a rank; ones only are above all of them
    size = num_experts // num_expert_group
    tile = {
        "PER_GROUP": per_group,
        "GROUPS": num_expert_group,
        "SIZE": size,
        "G": triton.next_power_of_2(num_expert_group),
        "N": triton.next_power_of_2(size),
    }
    tile["READ"] = max(1, ADDED // (tile["G"] * tile["N"]))
    router, warps = routing.wider(WARPS)
    with torch.cuda.device_of(logits):
        if 0 < tokens <= ONE_LAUNCH_TILES * router.t:
            limit[(1,)](
                *routing.inputs,
                routing.weights,
                routing.experts,
                routing.experts.new_empty(num_experts),
                kept,
                budget,
                need,
                bits,
                router=router,
                num_warps=warps,
                enable_fp_fusion=False,
                **tile,
            )
            return routing.weights, routing.experts, kept
        counts, _ = route_segments(routing)
        choose[(1,)](counts, len(counts), kept, budget, need, bits, num_warps=16, **tile)
        if tokens:
            routing.route(kept)
    return routing.weights, routing.experts, kept
