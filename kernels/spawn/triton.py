"""A round of LoPA up to the model in one Triton launch: same meaning as `reference.py`.

A program makes a sequence's branches: its window is one tile, a row for each block, so that what
concerns a block is a reduction of a row. Only the look for the end of text reads all positions.

Floor: the launch; G + 3 * W numbers read and 6 * (k + 1) * W bytes written per sequence.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triselect.kernels.spawn.reference import FAR

READ = 1024  # positions looked at together for the end of text
HIGHEST = tl.constexpr(2**31 - 1)
NOTHING = tl.constexpr(-(2**63))  # below all keys
ABOVE = tl.constexpr(2**63 - 1)


@triton.jit
def keys(values, place):
    """One number in the order of (value, lower place first): -0 as +0, and NaN as -inf."""
    values = tl.where(values == values, values, float("-inf")) + 0.0
    bits = values.to(tl.int32, bitcast=True)
    bits ^= (bits >> 31) & HIGHEST
    return (bits.to(tl.int64) << 32) | (place ^ HIGHEST).to(tl.int64)


@triton.jit
def place_of(key):
    return (key & HIGHEST).to(tl.int32) ^ HIGHEST


@triton.jit
def sure_by_rank(p, known, place, factor):
    """The n most probable of each block's known ones with (n + 1) * (1 - p_n) < factor, and which
    is their last one: as the products ascend, all up to it are taken.
    """
    key = tl.where(known & (p == p), keys(p, place), NOTHING)
    ranked = tl.sort(key, descending=True)
    bits = (ranked >> 32).to(tl.int32)
    bits ^= (bits >> 31) & HIGHEST
    n = (tl.arange(0, p.shape[1]) + 2).to(tl.float32)[None, :]
    sure = (ranked != NOTHING) & (n * (1.0 - bits.to(tl.float32, bitcast=True)) < factor)
    last = tl.min(tl.where(sure, ranked, ABOVE), 1)[:, None]
    return (key != NOTHING) & (key >= last)


@triton.jit(
    do_not_specialize=["length", "window", "lookaheads", "mask", "eos", "add_at", "activate_at"]
)
def spawn_sequences(
    tokens,
    token,
    prob,
    score,
    added,
    start,
    thresholds,
    branch,
    is_open,
    asked,
    extra,
    level,
    added_next,
    start_next,
    length,
    window,
    lookaheads,
    mask,
    eos,
    threshold,
    factor,
    add_at,
    activate_at,
    BLOCK: tl.constexpr,
    BY_RANK: tl.constexpr,
    ATTENTION: tl.constexpr,
    SHIFT: tl.constexpr,
    FAR: tl.constexpr,
    READ: tl.constexpr,
    BLOCKS: tl.constexpr,
    SIZE: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    row = b * length
    # What is out of range is made to fit: nobody looked at it.
    begin = tl.minimum(tl.maximum(tl.load(start + b), 0), length) // BLOCK * BLOCK
    blocks = tl.minimum(tl.maximum(tl.load(added + b), 0), length // BLOCK)
    here = tl.minimum(window, length - begin)
    if thresholds is not None:
        threshold = tl.load(thresholds + b)

    limit = length  # where the text ends
    for first in range(0, length, READ):
        i = first + tl.arange(0, READ)
        x = tl.load(tokens + row + i, mask=i < length, other=mask)
        limit = tl.minimum(limit, tl.min(tl.where(x == eos, i, length)))

    at_block = tl.arange(0, BLOCKS)[:, None]
    in_block = tl.arange(0, SIZE)[None, :]
    offset = at_block * BLOCK + in_block
    there = (in_block < BLOCK) & (offset < here)
    place = begin + offset
    x = tl.load(tokens + row + place, mask=there, other=0)
    t = tl.load(token + row + place, mask=there, other=-1)
    p = tl.load(prob + row + place, mask=there, other=0.0)
    q = tl.load(score + row + place, mask=there, other=0.0)
    key = keys(q, place)

    # The anchor.
    before = there & (x == mask) & (place < blocks * BLOCK) & (place < limit)
    known = before & (t >= 0)
    taken = sure_by_rank(p, known, place, factor) if BY_RANK else known & (p > threshold)
    # Of the block before each, how many are filled; all of the one before the window.
    back = place - BLOCK
    second = there & (at_block > 0)
    open_back = second & (tl.load(tokens + row + back, mask=second, other=0) == mask)
    open_back &= (back < blocks * BLOCK) & (back < limit)
    filled = BLOCK - tl.sum(open_back.to(tl.int32), 1)[:, None]
    full = (begin + at_block == 0) | (filled >= activate_at)
    none = tl.max(taken.to(tl.int32), 1)[:, None] == 0
    best = tl.max(tl.where(known, key, NOTHING), 1)[:, None]
    taken |= known & (key == best) & none & full
    x = tl.where(taken, t, x)

    limit = tl.minimum(limit, tl.min(tl.where(taken & (x == eos), place, length)))
    after = there & (x == mask) & (place < blocks * BLOCK) & (place < limit)

    # The pipeline, and what is frozen.
    open_now = tl.sum(after.to(tl.int32))
    of_last = tl.sum((after & (place >= (blocks - 1) * BLOCK)).to(tl.int32))
    cut = begin + window
    room = tl.minimum(length, tl.where((open_now > 0) & (cut < length), cut - BLOCK, cut))
    more = ((blocks + 1) * BLOCK <= room) & (limit == length) & (BLOCK - of_last >= add_at)
    reach = (blocks + more.to(tl.int32)) * BLOCK
    unfinished = there & (x == mask) & (place < reach) & (place < limit)
    following = begin
    if ATTENTION != "bidirectional":
        first = tl.min(tl.where(unfinished, place, tl.maximum(reach, begin)))
        following = first // BLOCK * BLOCK
    tl.store(added_next + b, reach // BLOCK)
    tl.store(start_next + b, following)
    real = (in_block < BLOCK) & (offset < window)
    if ATTENTION == "bidirectional":
        seen = tl.zeros_like(place)
    elif ATTENTION == "full":
        seen = tl.where(place < reach, tl.minimum(place, following) // BLOCK + 1, FAR)
    else:
        seen = tl.where(place < reach, place // BLOCK + 1, FAR)
    tl.store(level + b * window + offset, tl.where(there, seen, FAR), mask=real)

    # The branches: the best of those that are left are the lookaheads', one after the other.
    x = tl.where(there, x, mask)
    alone = (tl.sum(unfinished.to(tl.int32)) == 1) & (reach < length) & (limit == length)
    able = after & (t >= 0) & (q > float("-inf")) & (alone == 0)
    left = tl.where(able, key, NOTHING)
    own = tl.cast(-1, tl.int32)
    for j in range(lookaheads + 1):
        y = x
        live = unfinished
        if j > 0:
            top = tl.max(left)
            own = tl.where(top == NOTHING, -1, place_of(top))
            left = tl.where(left == top, NOTHING, left)
            mine = place == own
            y = tl.where(mine & there, t, x)
            ends = tl.min(tl.where(mine & there & (t == eos), place, length))
            live = unfinished & (own >= 0) & (place < ends) & (y == mask)
        to = (b * (lookaheads + 1) + j) * window
        tl.store(extra + b * (lookaheads + 1) + j, own)
        tl.store(branch + to + offset, y, mask=real)
        tl.store(is_open + to + offset, live, mask=real)
        if SHIFT:
            tl.store(asked + to + offset - 1, live, mask=real & (offset > 0))
            tl.store(asked + to + window - 1, tl.cast(0, tl.int1))
        else:
            tl.store(asked + to + offset, live, mask=real)


def spawn(
    tokens: Tensor,
    token: Tensor,
    prob: Tensor,
    score: Tensor,
    added: Tensor,
    start: Tensor,
    thresholds: Tensor | None,
    block_length: int,
    window: int,
    num_lookaheads: int,
    mask_token: int,
    eos_token: int,
    threshold: float,
    factor: float,
    add_at: int,
    activate_at: int,
    attention: str,
    shift: bool,
) -> tuple[Tensor, ...]:
    """Branches of sequences ``(B, G)``; added and start are ``(B,)``."""
    batch, length = tokens.shape
    rows = num_lookaheads + 1
    branch = tokens.new_empty((batch, rows, window))
    is_open = tokens.new_empty((batch, rows, window), dtype=torch.bool)
    asked = torch.empty_like(is_open)
    extra = tokens.new_empty((batch, rows))
    level = tokens.new_empty((batch, window))
    added_next, start_next = tokens.new_empty(batch), tokens.new_empty(batch)
    out = (branch, is_open, asked, extra, level, added_next, start_next)
    if not batch:
        return out
    size = triton.next_power_of_2(block_length)
    blocks = triton.next_power_of_2(window // block_length)
    with torch.cuda.device_of(tokens):
        spawn_sequences[(batch,)](
            *(x.contiguous() for x in (tokens, token, prob, score, added, start)),
            None if thresholds is None else thresholds.contiguous(),
            *out,
            length,
            window,
            num_lookaheads,
            mask_token,
            eos_token,
            threshold,
            factor,
            add_at,
            activate_at,
            BLOCK=block_length,
            BY_RANK=factor > 0,
            ATTENTION=attention,
            SHIFT=shift,
            FAR=FAR,
            READ=READ,
            BLOCKS=blocks,
            SIZE=size,
            num_warps=min(16, max(1, size * blocks // 128)),
            enable_fp_fusion=False,
        )
    return out
