"""Permutation of token copies by expert in one or two Triton launches: a counting sort.

With assignment n of N = T * K going to expert e_n:

    offsets[e] = assignments to experts before e
    slot_of[n] = offsets[e_n] + assignments before n to e_n,   source[slot_of[n]] = n // K

Floor: 4 bytes read and 8 written per assignment, or the launches. Nothing needs an atomic: every
program counts for itself what goes before its own assignments. In one launch it counts all N. Where
that would take longer than a launch, a first launch counts segments of N, and a program adds up
their counts and what is in its own segment.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Computed, not measured: tl.histogram takes a warp about 75 instructions for 32 assignments to 256
# experts, so a processor counts these in 2,400 cycles, and twice as many while a launch gets going.
SEGMENT = 2**12
SEGMENTS = 64  # at most, as every program reads all their counts: rather than more, larger ones
READS = 2**15  # programs times segments, at most, with those counts read again by each
COUNTED = 2**11  # assignments counted at a time
ADDED = 2**13  # counts of segments added up at a time
PLACED = 64  # assignments placed at a time: each is compared with all of them
MAX_EXPERTS = 2**13  # whose counts the registers of a program hold


@triton.jit
def load_experts(
    experts,
    first,
    end,
    token_stride,
    slot_stride,
    expert,
    E: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
):
    """Experts of the assignments from `first` to `end`, counted from `expert` on; their tokens and
    slots. What is none of the E experts from there is -1.
    """
    i = tl.arange(0, TILE)
    slot = tl.cast(first % K, tl.int32) + i  # in 32 bits, though first + i may take more
    token = tl.cast(first // K, tl.int32) + slot // K
    slot = slot % K
    at = token.to(tl.int64) * token_stride + slot.to(tl.int64) * slot_stride
    ids = tl.load(experts + at, mask=i < end - first, other=-1) - expert
    return tl.where((ids >= 0) & (ids < E), ids, -1).to(tl.int32), token, slot


@triton.jit
def count_range(
    experts,
    begin,
    end,
    token_stride,
    slot_stride,
    expert,
    E: tl.constexpr,
    K: tl.constexpr,
    BINS: tl.constexpr,
    TILE: tl.constexpr,
):
    """How many of the assignments from `begin` to `end` go to each expert."""
    count = tl.zeros((BINS,), tl.int32)
    for first in range(begin, end, TILE):
        ids, _, _ = load_experts(experts, first, end, token_stride, slot_stride, expert, E, K, TILE)
        count += tl.histogram(ids, BINS, mask=ids >= 0)
    return count


@triton.jit
def rank(ids):
    """How many before each are the same: 0 < key_i - key_j <= i says both in one comparison."""
    i = tl.arange(0, ids.shape[0])
    key = ids * ids.shape[0] + i
    behind = (key[:, None] - key[None, :] - 1).to(tl.uint32, bitcast=True)
    return tl.sum((behind < i[:, None].to(tl.uint32, bitcast=True)).to(tl.int32), 1)


@triton.jit
def take_slots(ids, base):
    """Slots of assignments, from `base` of each expert on, and `base` behind them."""
    real = ids >= 0
    slots = tl.gather(base, tl.where(real, ids, 0), 0) + rank(ids)
    return tl.where(real, slots, -1), base + tl.histogram(ids, base.shape[0], mask=real)


@triton.jit
def place_range(
    experts,
    source,
    slot_of,
    begin,
    end,
    base,
    rows,
    token_stride,
    slot_stride,
    slot_of_stride,
    expert,
    E: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
):
    """Slots of the assignments from `begin` to `end`, from `base` on; what `rows` leave is -1."""
    for first in range(begin, end, TILE):
        ids, token, slot = load_experts(
            experts, first, end, token_stride, slot_stride, expert, E, K, TILE
        )
        slots, base = take_slots(ids, base)
        i = tl.arange(0, TILE)
        there = i < end - first
        tl.store(source + slots, token, mask=slots >= 0)
        tl.store(slot_of + token.to(tl.int64) * slot_of_stride + slot, slots, mask=there)
        tl.store(source + first + i, -1, mask=there & (i >= rows - first))


@triton.jit
def store_offsets(offsets, start, total, E: tl.constexpr):
    """Where the rows of each of E experts begin, from `start` on, and where the last's end."""
    e = tl.arange(0, total.shape[0])
    tl.store(offsets + e, start + tl.cumsum(total) - total, mask=e < E)
    tl.store(offsets + E, start + tl.sum(total))


@triton.jit(do_not_specialize=["assignments", "segment"])
def count(
    experts,
    counts,
    assignments,
    segment,
    token_stride,
    slot_stride,
    E: tl.constexpr,
    K: tl.constexpr,
    BINS: tl.constexpr,
    COUNTED: tl.constexpr,
):
    begin = tl.program_id(0).to(tl.int64) * segment
    end = tl.minimum(begin + segment, assignments)
    found = count_range(experts, begin, end, token_stride, slot_stride, 0, E, K, BINS, COUNTED)
    e = tl.arange(0, BINS)
    tl.store(counts + tl.program_id(0) * E + e, found, mask=e < E)


@triton.jit(do_not_specialize=["assignments", "segments", "segment", "chunk", "pieces"])
def place(
    experts,
    counts,
    source,
    slot_of,
    offsets,
    assignments,
    segments,
    segment,
    chunk,
    pieces,
    token_stride,
    slot_stride,
    E: tl.constexpr,
    K: tl.constexpr,
    BINS: tl.constexpr,
    COUNTED: tl.constexpr,
    READ: tl.constexpr,
    TILE: tl.constexpr,
):
    """Places a chunk of a segment."""
    mine = tl.program_id(0) // pieces
    start = mine.to(tl.int64) * segment
    stop = tl.minimum(start + segment, assignments)
    begin = tl.minimum(start + (tl.program_id(0) % pieces).to(tl.int64) * chunk, stop)
    end = tl.minimum(begin + chunk, stop)

    before = count_range(experts, start, begin, token_stride, slot_stride, 0, E, K, BINS, COUNTED)
    if counts is None:
        total = before + count_range(
            experts, begin, stop, token_stride, slot_stride, 0, E, K, BINS, COUNTED
        )
    else:
        total = tl.zeros((BINS,), tl.int32)
        e = tl.arange(0, BINS)[None, :]
        for first in range(0, segments, READ):
            s = first + tl.arange(0, READ)[:, None]
            some = tl.load(counts + s * E + e, mask=(s < segments) & (e < E), other=0)
            total += tl.sum(some, 0)
            before += tl.sum(tl.where(s < mine, some, 0), 0)

    if tl.program_id(0) == 0:
        store_offsets(offsets, 0, total, E)
    base = tl.cumsum(total) - total + before
    rows = tl.sum(total)
    place_range(
        experts,
        source,
        slot_of,
        begin,
        end,
        base,
        rows,
        token_stride,
        slot_stride,
        K,
        0,
        E,
        K,
        TILE,
    )


def unfilled(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Source, slot_of and offsets, without values."""
    tokens, k = experts.shape
    shapes: tuple[tuple[int, ...], ...] = ((tokens * k,), (tokens, k), (num_experts + 1,))
    source, slot_of, offsets = (experts.new_empty(s, dtype=torch.int32) for s in shapes)
    return source, slot_of, offsets


def tiles(num_experts: int) -> dict[str, int]:
    """Experts as they are and as registers hold them, and assignments counted at a time."""
    if num_experts > MAX_EXPERTS:
        raise ValueError(
            f"num_experts must be at most {MAX_EXPERTS} for backend 'triton', got {num_experts}"
        )
    bins = triton.next_power_of_2(num_experts)
    return {"E": num_experts, "BINS": bins, "COUNTED": min(COUNTED, 2**21 // bins)}


def place_segments(
    experts: Tensor, num_experts: int, counts: Tensor | None, segment: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The permutation, from `counts` of segments of so many assignments; None is one segment."""
    tokens, k = experts.shape
    permutation = unfilled(experts, num_experts)
    segments = 1 if counts is None else len(counts)
    pieces = max(1, min(triton.cdiv(segment, PLACED), READS // segments**2))
    tile = tiles(num_experts)
    place[(segments * pieces,)](
        experts,
        counts,
        *permutation,
        tokens * k,
        segments,
        segment,
        triton.cdiv(triton.cdiv(segment, pieces), PLACED) * PLACED,
        pieces,
        *experts.stride(),
        K=k,
        READ=max(1, ADDED // tile["BINS"]),
        TILE=PLACED,
        num_warps=8,
        **tile,
    )
    return permutation


def permute(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """``source (T * K,)``, ``slot_of (T, K)`` and ``offsets (E + 1,)``, all int32."""
    assignments = experts.numel()
    if not assignments:
        source, slot_of, offsets = unfilled(experts, num_experts)
        return source, slot_of, offsets.zero_()
    tile = tiles(num_experts)
    segment = SEGMENT * 256 // max(256, tile["BINS"])
    with torch.cuda.device_of(experts):
        if assignments <= 2 * segment:
            return place_segments(experts, num_experts, None, assignments)
        segment = max(segment, triton.cdiv(assignments, SEGMENTS))
        segments = triton.cdiv(assignments, segment)
        counts = experts.new_empty((segments, num_experts), dtype=torch.int32)
        count[(segments,)](
            experts,
            counts,
            assignments,
            segment,
            *experts.stride(),
            K=experts.shape[1],
            num_warps=8,
            **tile,
        )
        return place_segments(experts, num_experts, counts, segment)
