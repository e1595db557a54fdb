"""The tile that a program routes, and what is folded over it.

Tiles are ``[R, J, T, G, L, V]``: token t, and of its group r * G + g, expert (j * L + l) * V + v.
Neighbouring lanes of a warp read the vectors of V experts along (T, G, L), and hold R * J of them.
"""

from functools import cache
from typing import NamedTuple

import triton
import triton.language as tl
from triselect.kernels.grouped_topk.triton.keys import INDEX, PADDING
from triselect.kernels.grouped_topk.triton.scores import sum_in_pairs


class Router(NamedTuple):
    """What a kernel is compiled for: the router, then the tile."""

    scoring: str
    group_score: str
    renormalize: bool
    balanced: bool
    groups: int
    kept: int
    size: int  # experts of a group
    top_k: int
    packed: bool
    two_stages: bool
    r: int
    j: int
    t: int
    g: int
    l: int  # noqa: E741
    v: int


@cache
def plan(
    experts: int,
    itemsize: int,
    top_k: int,
    groups: int,
    kept: int,
    balanced: bool,
    scoring: str,
    group_score: str,
    biased: bool,
    renormalize: bool,
) -> tuple[Router, int]:
    """The router with its tile, and the number of warps that hold it."""
    balanced = balanced and groups > 1
    if kept == groups and not balanced:
        groups = kept = 1
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
    router = Router(
        scoring=scoring,
        group_score=group_score if kept < groups else "max",
        renormalize=renormalize,
        balanced=balanced,
        groups=groups,
        kept=kept,
        size=size,
        top_k=top_k,
        packed=itemsize == 2 and not biased and experts <= 2**13,
        two_stages=not balanced
        and 2 * candidates <= held
        and top_k <= kept * triton.cdiv(size, vector),
        r=g // in_row,
        j=n // (in_group * vector),
        t=max(1, 32 // (in_group * in_row)) * max(1, 16 // held),
        g=in_row,
        l=in_group,
        v=vector,
    )
    return router, max(1, in_group * in_row // 32)


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
    """Sum of each token's part of the tile: the same bits whatever the tile's layout."""
    T: tl.constexpr = x.shape[2]
    x = x.permute(2, 3, 4, 0, 1, 5).reshape(T, x.numel // T)  # registers first, then lanes
    return sum_in_pairs(x).reshape(1, 1, T, 1, 1, 1)


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
