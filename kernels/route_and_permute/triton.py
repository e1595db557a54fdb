"""Routing and permutation in one Triton launch, or in two where there are many tokens.

Weights and experts have the bits of `grouped_topk`, whose tiles these kernels route, and the
permutation is that of `permute`. Floor: E * itemsize + 16 * top_k bytes of memory per token where
there are many, the launch where there are few. What a launch cannot do is to wait for all of itself
before it goes on to permute. Hence

- few tokens in balanced groups that are all kept (MoGE): the rows of group g begin at
  g * T * top_k / G, whatever the logits say. A program routes all tokens, keeps its group's part
  and permutes that.
- up to about a thousand tokens: programs route, count and rank their own assignments, and the last
  one to be done adds up the counts and places them all.
- more: one launch routes segments of tokens and counts, `place` of `permute` is the second.
"""

from itertools import count
from secrets import randbits
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.grouped_topk.triton.route import Launch, prepare, route_tile
from triselect.kernels.grouped_topk.triton.segments import route_segments
from triselect.kernels.grouped_topk.triton.tile import axis
from triselect.kernels.permute.triton import (
    PLACED,
    count_range,
    load_experts,
    permute,
    place_range,
    place_segments,
    store_offsets,
    take_slots,
    tiles,
    unfilled,
)

GROUPWISE_TOKENS = 256  # that a program of balanced groups routes, a few at a time
GROUPWISE_WARPS = 8
ONE_LAUNCH_TOKENS = 1024  # whose assignments the last program places, some thousands at a time
PROGRAMS = 128  # of which one is the last, at most
COUNTS = 2**16  # programs times experts, at most: counts that the last one adds up
ADDED = 2**12  # of them at a time
WARPS = 4
ARRIVALS = 256  # at least PROGRAMS, and the threads of a program: none looks at a flag twice


@triton.jit(do_not_specialize=["tokens"])
def route_and_permute_group(
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
    source,
    slot_of,
    offsets,
    BINS: tl.constexpr,
    COUNTED: tl.constexpr,
    TILE: tl.constexpr,
    router: tl.constexpr,
):
    SIZE: tl.constexpr = router.size
    TOP_K: tl.constexpr = router.top_k
    EACH: tl.constexpr = router.top_k // router.groups
    mine = tl.program_id(0)
    group = axis(router.r, 0) * router.g + axis(router.g, 3)
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
        tl.store(weights + at, w, mask=out & (group == mine))
        tl.store(experts + at, ids, mask=out & (group == mine))

    tl.debug_barrier()  # now they are read in the order of tokens
    experts += mine * EACH
    rows = tokens * EACH
    start = mine * rows
    total = count_range(experts, 0, rows, TOP_K, 1, mine * SIZE, SIZE, EACH, BINS, COUNTED)
    store_offsets(offsets + mine * SIZE, start, total, SIZE)
    place_range(
        experts,
        source,
        slot_of + mine * EACH,
        0,
        rows,
        start + tl.cumsum(total) - total,
        tokens * TOP_K,
        TOP_K,
        1,
        TOP_K,
        mine * SIZE,
        SIZE,
        EACH,
        TILE,
    )


@triton.jit
def arrives_last(flags, launch, programs, ARRIVALS: tl.constexpr):
    """Have all other programs of this launch stored what they store before this? True for one.

    A flag is up where it holds the launch's number, which no other launch has or had. So flags may
    be memory that no one cleared, and launches that run side by side have their own. A captured
    graph launches with the same number and the same flags every time, one time after the other:
    hence the last program must lower them for the next.

    Everyone raises a flag, then looks at all. Of two programs the one that looked at the other's
    flag and did not see it up is seen by the other: atomic operations on one flag have an order,
    and acquire and release what comes before them. So whoever arrives last sees all flags up. Who
    sees that late might be a second one; only one can lower flag 0.
    """
    tl.debug_barrier()  # all threads have stored
    tl.atomic_xchg(flags + tl.program_id(0), launch, sem="acq_rel", scope="gpu")
    tl.debug_barrier()  # none looks before the flag is up
    i = tl.arange(0, ARRIVALS)
    nothing = tl.zeros((ARRIVALS,), tl.int64)
    seen = tl.atomic_or(flags + i, nothing, mask=i < programs, sem="acq_rel", scope="gpu")
    up = (seen == launch) & (i < programs)
    last = tl.sum(up.to(tl.int32)) == programs
    if last:
        last = tl.atomic_xchg(flags, tl.cast(0, tl.int64), sem="acq_rel", scope="gpu") == launch
        tl.debug_barrier()  # no thread reads what others stored before all of them have looked
    return last


@triton.jit(do_not_specialize=["tokens", "launch", "programs"])
def route_and_permute_all(
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
    source,
    slot_of,
    offsets,
    counts,
    flags,
    launch,
    programs,
    E: tl.constexpr,
    BINS: tl.constexpr,
    READ: tl.constexpr,
    TILE: tl.constexpr,
    ARRIVALS: tl.constexpr,
    router: tl.constexpr,
):
    K: tl.constexpr = router.top_k
    program = tl.program_id(0)
    w, ids, at, out = route_tile(
        program.to(tl.int64) * router.t + axis(router.t, 2),
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
    tl.store(weights + at, w, mask=out)
    tl.store(experts + at, ids, mask=out)

    tl.debug_barrier()  # now they are read in the order of tokens
    begin = program * router.t * K
    end = tl.minimum(begin + router.t * K, tokens * K)
    mine = tl.zeros((BINS,), tl.int32)
    for first in range(begin, end, TILE):
        again, _, _ = load_experts(experts, first, end, K, 1, 0, E, K, TILE)
        ranks, mine = take_slots(again, mine)
        i = tl.arange(0, TILE)
        tl.store(slot_of + first + i, ranks, mask=i < end - first)
    e = tl.arange(0, BINS)
    tl.store(counts + program * E + e, mine, mask=e < E)

    if arrives_last(flags, launch, programs, ARRIVALS):
        # .cg reads past the cache of this processor, which knows nothing of the others' stores.
        total = tl.zeros((BINS,), tl.int32)
        for first in range(0, programs, READ):
            p = first + tl.arange(0, READ)[:, None]
            there = (p < programs) & (e[None, :] < E)
            at_counts = counts + p * E + e[None, :]
            some = tl.load(at_counts, mask=there, other=0, cache_modifier=".cg")
            tl.store(at_counts, total[None, :] + tl.cumsum(some, 0) - some, mask=there)
            total += tl.sum(some, 0)
        store_offsets(offsets, 0, total, E)
        starts = tl.cumsum(total) - total
        tl.debug_barrier()
        for first in range(0, tokens * K, READ * BINS):
            n = first + tl.arange(0, READ * BINS)
            there = n < tokens * K
            expert = tl.load(experts + n, mask=there, other=0, cache_modifier=".cg")
            rank = tl.load(slot_of + n, mask=there, other=0, cache_modifier=".cg")
            at_counts = counts + n // (router.t * K) * E + expert
            before = tl.load(at_counts, mask=there, other=0, cache_modifier=".cg")
            slot = tl.gather(starts, expert, 0) + before + rank
            tl.store(slot_of + n, slot, mask=there)
            tl.store(source + slot, n // K, mask=there)
        i = tl.arange(0, ARRIVALS)
        tl.store(flags + i, tl.zeros((ARRIVALS,), tl.int64), mask=i < programs)


# From somewhere in 60 bits: what is in memory by chance, or is left of another process, is no flag.
LAUNCHES = count(2**61 + randbits(60))


def flags(like: Tensor, programs: int) -> Tensor:
    """One for each program, in memory as it comes: `arrives_last` says why that will do."""
    return like.new_empty(programs, dtype=torch.int64)


def in_groups(routing: Launch) -> tuple[Tensor, Tensor, Tensor]:
    permutation = unfilled(routing.experts, routing.inputs[0].shape[1])
    router, warps = routing.wider(GROUPWISE_WARPS)
    bins = triton.next_power_of_2(router.size)
    route_and_permute_group[(router.groups,)](
        *routing.inputs,
        routing.weights,
        routing.experts,
        *permutation,
        BINS=bins,
        COUNTED=512,  # of one group there are not many
        TILE=PLACED,
        router=router,
        num_warps=warps,
        enable_fp_fusion=False,
    )
    return permutation


def by_the_last(routing: Launch) -> tuple[Tensor, Tensor, Tensor] | None:
    """None where there is too much for one program to place."""
    tokens, num_experts = routing.inputs[0].shape
    router, warps = routing.wider(WARPS)
    programs = triton.cdiv(tokens, router.t)
    bins = triton.next_power_of_2(num_experts)
    if tokens > ONE_LAUNCH_TOKENS or programs > PROGRAMS or programs * bins > COUNTS:
        return None
    permutation = unfilled(routing.experts, num_experts)
    route_and_permute_all[(programs,)](
        *routing.inputs,
        routing.weights,
        routing.experts,
        *permutation,
        routing.experts.new_empty((programs, num_experts)),
        flags(routing.experts, programs),
        next(LAUNCHES),
        programs,
        E=num_experts,
        BINS=bins,
        READ=max(1, ADDED // bins),
        TILE=PLACED,
        ARRIVALS=ARRIVALS,
        router=router,
        num_warps=warps,
        enable_fp_fusion=False,
    )
    return permutation


def route_and_permute(logits: Tensor, top_k: int, *options: Any) -> tuple[Tensor, ...]:
    """Weights and experts ``(T, top_k)`` of `grouped_topk`, and what `permute` makes of them."""
    tokens, num_experts = logits.shape
    tiles(num_experts)  # raises ValueError where they are too many
    routing = prepare(logits, top_k, *options)
    router = routing.router
    if not tokens:
        return routing.weights, routing.experts, *permute(routing.experts, num_experts)
    with torch.cuda.device_of(logits):
        if router.balanced and router.kept == router.groups and tokens <= GROUPWISE_TOKENS:
            permutation = in_groups(routing)
        elif (permutation := by_the_last(routing)) is None:
            counts, segment = route_segments(routing)
            permutation = place_segments(routing.experts, num_experts, counts, segment * top_k)
    return routing.weights, routing.experts, *permutation
