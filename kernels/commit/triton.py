"""A round of LoPA behind the model in one Triton launch: same meaning as `reference.py`.

A program makes a sequence's state. It values some of its branches together, a row of a tile each,
and then copies the sequence with the winner's window.

Floor: the launch; 48 * G bytes and 13 * (k + 1) * W per sequence, read and written.
"""

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # positions of branches that are valued together
COPIED = 1024  # positions copied together
HIGHEST = tl.constexpr(2**31 - 1)


@triton.jit
def ordered(x):
    """int32 in the order of float32: NaN above all others, -0 as +0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    bits ^= (bits >> 31) & HIGHEST
    return tl.where(x == x, bits, HIGHEST)


@triton.jit
def mean_of_lowest(score, some, n, ratio):
    """Of the max(1, int(ratio * n)) lowest scores of each row: the last of them is found bit by
    bit, and those below it are counted.
    """
    few = tl.maximum((n.to(tl.float64) * ratio).to(tl.int32), 1)
    # Keys from 0 up, so that they can be found from the highest bit on.
    key = tl.where(some, ordered(score).to(tl.int64) + 2**31, 2**32)
    last = tl.zeros_like(n).to(tl.int64)
    for bit in range(32):
        middle = last + (tl.full((), 1, tl.int64) << (31 - bit))
        fewer = tl.sum((key < middle[:, None]).to(tl.int32), 1) < few
        last = tl.where(fewer, middle, last)
    below = key < last[:, None]
    bits = (last - 2**31).to(tl.int32)
    bits ^= (bits >> 31) & HIGHEST
    value = bits.to(tl.float32, bitcast=True).to(tl.float64)
    ties = (few - tl.sum(below.to(tl.int32), 1)).to(tl.float64)
    total = tl.sum(tl.where(below, score, 0.0).to(tl.float64), 1)
    return (total + ties * value) / few.to(tl.float64)


@triton.jit
def worth_of(
    prob, score, some, common, own_prob, own_score, ahead, ratio, threshold, RULE: tl.constexpr
):
    """What each row's branch is worth, float32."""
    n = tl.sum(some.to(tl.int32), 1)
    count = tl.maximum(n, 1)
    if RULE == "lowest":
        value = mean_of_lowest(score, some, n, ratio)
    elif RULE == "count":
        sure = some & (prob > threshold)
        value = (tl.sum(sure.to(tl.int32), 1) + ahead.to(tl.int32)).to(tl.float64)
    elif RULE == "log_prob":
        logs = tl.log(tl.where(some, prob, 1.0).to(tl.float64))
        value = tl.sum(logs, 1) + tl.log(tl.where(ahead, own_prob, 1.0).to(tl.float64))
    else:
        within = some
        if RULE == "common_mean":
            within = tl.broadcast_to(common[None, :], some.shape)
            count = tl.maximum(tl.sum(within.to(tl.int32), 1), 1)
        total = tl.sum(tl.where(within, score, 0.0).to(tl.float64), 1)
        value = total / count.to(tl.float64)
        if RULE == "information_gain":
            value += tl.where(ahead, own_score, 0.0).to(tl.float64)
    return tl.where(n == 0, float("inf"), value.to(tl.float32))


@triton.jit
def to_bfloat16(x):
    bits = x.to(tl.int32, bitcast=True)
    near = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return tl.where(tl.abs(x) < float("inf"), near.to(tl.float32, bitcast=True), x)


@triton.jit(do_not_specialize=["length", "window", "rows", "ratio_bits"])
def commit_sequences(
    tokens,
    token,
    prob,
    score,
    filled_at,
    filled_by,
    step,
    start,
    branch,
    is_open,
    extra,
    new_token,
    new_prob,
    new_score,
    given,
    tokens_next,
    token_next,
    prob_next,
    score_next,
    filled_at_next,
    filled_by_next,
    winner,
    worth,
    length,
    window,
    rows,
    ratio_bits,
    threshold,
    RULE: tl.constexpr,
    SHIFT: tl.constexpr,
    RELEASED: tl.constexpr,
    ROWS: tl.constexpr,
    W: tl.constexpr,
    COPIED: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    row = b * length
    # What is out of range is made to fit: nobody looked at it.
    begin = tl.minimum(tl.maximum(tl.load(start + b), 0), length)
    here = tl.minimum(window, length - begin)
    offset = tl.arange(0, W)
    there = offset < here
    ratio = tl.cast(ratio_bits, tl.int64).to(tl.float64, bitcast=True)
    shifted = offset[None, :] - SHIFT

    common = there
    if given is None and RULE == "common_mean":
        for first in range(0, rows, ROWS):
            j = first + tl.arange(0, ROWS)
            own = tl.load(extra + b * rows + j, mask=j < rows, other=-1)
            live = (j < rows) & ((j == 0) | (own >= 0))
            at = (b * rows + j)[:, None] * window + offset[None, :]
            some = tl.load(is_open + at, mask=live[:, None] & there[None, :], other=0) != 0
            common &= tl.min((some | ~live[:, None]).to(tl.int32), 0) != 0

    best_worth = tl.full((), float("-inf"), tl.float32)
    best_order = tl.full((), HIGHEST, tl.int32)  # the anchor is always there to take its place
    for first in range(0, rows, ROWS):
        j = first + tl.arange(0, ROWS)
        own = tl.load(extra + b * rows + j, mask=j < rows, other=-1)
        live = (j < rows) & ((j == 0) | (own >= 0))
        if given is None:
            ahead = live & (j > 0)
            of_own = ahead & (own < length)
            own_prob = tl.load(prob + row + own, mask=of_own, other=1.0)
            own_score = tl.load(score + row + own, mask=of_own, other=0.0)
            at = (b * rows + j)[:, None] * window + offset[None, :]
            real = live[:, None] & there[None, :]
            some = tl.load(is_open + at, mask=real, other=0) != 0
            p = tl.load(new_prob + at - SHIFT, mask=real & (shifted >= 0), other=0.0)
            q = tl.load(new_score + at - SHIFT, mask=real & (shifted >= 0), other=0.0)
            if SHIFT:
                kept = real & (shifted < 0)
                p = tl.where(kept, tl.load(prob + row + begin, mask=here > 0, other=0.0), p)
                q = tl.where(kept, tl.load(score + row + begin, mask=here > 0, other=0.0), q)
            value = worth_of(p, q, some, common, own_prob, own_score, ahead, ratio, threshold, RULE)
        else:
            value = tl.load(given + b * rows + j, mask=j < rows, other=0.0)
        value = tl.where(live & (value == value), value, float("-inf"))
        order = j
        if RELEASED:
            value = to_bfloat16(value)
            order = tl.where(j == 0, rows, j)
        tl.store(worth + b * rows + j, value, mask=j < rows)
        most = tl.max(value)
        one = tl.min(tl.where(live & (value == most), order, HIGHEST))
        better = (most > best_worth) | ((most == best_worth) & (one < best_order))
        best_worth = tl.where(better, most, best_worth)
        best_order = tl.where(better, one, best_order)
    won = best_order
    if RELEASED:
        won = tl.where(best_order == rows, 0, best_order)
    tl.store(winner + b, won)

    number = tl.load(step + b)
    own = tl.load(extra + b * rows + won)
    for first in range(0, length, COPIED):
        i = first + tl.arange(0, COPIED)
        real = i < length
        w = i - begin
        inside = real & (w >= 0) & (w < here)
        at = (b * rows + won) * window + w
        before = tl.load(tokens + row + i, mask=real, other=0)
        x = tl.load(branch + at, mask=inside, other=0)
        x = tl.where(inside, x, before)
        filled = x != before
        tl.store(tokens_next + row + i, x, mask=real)
        when = tl.load(filled_at + row + i, mask=real, other=0)
        tl.store(filled_at_next + row + i, tl.where(filled, number, when), mask=real)
        by = tl.load(filled_by + row + i, mask=real, other=0)
        by = tl.where(filled, tl.where(i == own, won, 0), by)
        tl.store(filled_by_next + row + i, by, mask=real)

        some = tl.load(is_open + at, mask=inside, other=0) != 0
        old = real & (~inside | (some & (w < SHIFT)))
        new = inside & some & (w >= SHIFT)
        t = tl.load(token + row + i, mask=old, other=-1)
        t = tl.where(new, tl.load(new_token + at - SHIFT, mask=new, other=-1), t)
        tl.store(token_next + row + i, t, mask=real)
        p = tl.load(prob + row + i, mask=old, other=0.0)
        p = tl.where(new, tl.load(new_prob + at - SHIFT, mask=new, other=0.0), p)
        tl.store(prob_next + row + i, p, mask=real)
        q = tl.load(score + row + i, mask=old, other=float("-inf"))
        q = tl.where(new, tl.load(new_score + at - SHIFT, mask=new, other=0.0), q)
        tl.store(score_next + row + i, q, mask=real)


def commit(
    tokens: Tensor,
    token: Tensor,
    prob: Tensor,
    score: Tensor,
    filled_at: Tensor,
    filled_by: Tensor,
    step: Tensor,
    start: Tensor,
    branch: Tensor,
    is_open: Tensor,
    extra: Tensor,
    new_token: Tensor,
    new_prob: Tensor,
    new_score: Tensor,
    worth: Tensor | None,
    rule: str,
    ratio: float,
    threshold: float,
    shift: bool,
    released: bool,
) -> tuple[Tensor, ...]:
    """The state after the round: sequences ``(B, G)``, branches ``(B, k + 1, W)``."""
    length, (batch, rows, window) = tokens.shape[1], branch.shape
    state = [x.contiguous() for x in (tokens, token, prob, score, filled_at, filled_by)]
    branches = (branch, is_open, extra, new_token, new_prob, new_score)
    after = [torch.empty_like(x) for x in state]
    winner, values = tokens.new_empty(batch), prob.new_empty((batch, rows))
    if not batch:
        return *after, winner, values
    width = triton.next_power_of_2(window)
    together = min(triton.next_power_of_2(rows), max(1, TILE // width))
    with torch.cuda.device_of(tokens):
        commit_sequences[(batch,)](
            *state,
            *(x.contiguous() for x in (step, start, *branches)),
            None if worth is None else worth.contiguous(),
            *after,
            winner,
            values,
            length,
            window,
            rows,
            struct.unpack("<q", struct.pack("<d", ratio))[0],  # Triton would round it
            threshold,
            RULE=rule,
            SHIFT=int(shift),
            RELEASED=released,
            ROWS=together,
            W=width,
            COPIED=min(COPIED, triton.next_power_of_2(length)),
            num_warps=min(16, max(4, together * width // 256)),
            enable_fp_fusion=False,
        )
    return *after, winner, values
