"""Selection of tokens in Triton: a radix search for the k-th largest key, then its tokens in order.

A key is an unsigned integer in the order of the scores. Level by level, the keys that begin with
the digits found so far are counted by their next digit, which finds that of the k-th largest. Then
every token above it is selected, and of those equal to it the first.

A program selects from a short row by itself. A long one is cut in pieces, with a launch for each
level and one that stores: a program counts the digits of its piece, and in the next launch adds up
the counts of all pieces, which also say what comes before its own. So nothing needs an atomic, a
counter set to zero or a buffer for candidates, and indices ascend.

Floor: 5 launches for one long row of float32, 3 for one of 16 bits, one more with proximity, each
of about 2 microseconds; for many rows the bytes of the scores, once.
"""

from math import isqrt

import torch
import triton
import triton.language as tl
from torch import Tensor

DIGITS = tl.constexpr(2**8)  # values of a digit
# Scores as integers: of which type, where their infinity is, and how many digits they have.
FORMATS = {
    torch.float32: (torch.int32, 0x7F800000, 4),
    torch.float16: (torch.int16, 0x7C00, 2),
    torch.bfloat16: (torch.int16, 0x7F80, 2),
}
# Computed, not measured: a processor counts a key in 0.6 cycles and adds up the counts of a piece
# in 16, so that n keys take least in sqrt(n / 27) pieces; a launch takes about 3000 cycles.
ONE_PROGRAM = 2**13  # tokens that take no longer in one launch than in several
RATIO = 27  # n keys are not cut in more than sqrt(n / RATIO) pieces
PROGRAMS = 2**8  # enough to keep a GPU busy: with so many rows there is one piece of each
TILE = 2**11  # tokens that a program reads at a time
ADDED = 2**5  # pieces whose counts are added up at a time
NEAR = 8  # tokens to either side that are read one by one; what is beyond, in steps


@triton.jit
def bounds(start, end, tokens, row):
    """The range of a row: where it begins, and ends."""
    low = tl.cast(0, tl.int64)
    high = tl.cast(tokens, tl.int64)
    if start is not None:
        low = tl.maximum(tl.load(start + row).to(tl.int64), 0)
    if end is not None:
        high = tl.minimum(tl.load(end + row).to(tl.int64), tokens)
    return low, tl.maximum(low, high)


@triton.jit
def ordered(bits, INF: tl.constexpr):
    """Keys of scores, whose bits come as integers: -0 as +0, NaN as -inf, 16 bits as the upper ones
    of 32. INF is infinity among these integers, or None where they are keys already.
    """
    if INF is not None:
        BITS: tl.constexpr = bits.dtype.primitive_bitwidth
        bits = bits.to(tl.int32)
        magnitude = bits & (2 ** (BITS - 1) - 1)
        signed = tl.where(bits < 0, -magnitude, magnitude)
        signed = tl.where(magnitude > INF, -INF, signed)
        bits = (signed << (32 - BITS)) ^ -(2**31)
    return bits.to(tl.uint32, bitcast=True)


@triton.jit
def load_keys(
    scores, first, tokens, low, high, token_stride, INF: tl.constexpr, TILE: tl.constexpr
):
    """Keys of the tokens from `first` on, and which of them are in the range from low to high.

    What is beyond the range is read too: a mask that begins anywhere would make every load narrow.
    """
    i = tl.arange(0, TILE)
    at = first * token_stride + i.to(tl.int64) * token_stride
    bits = tl.load(scores + at, mask=i < tokens - first, other=0)
    begin = tl.maximum(low - first, 0).to(tl.int32)
    stop = tl.minimum(high - first, TILE).to(tl.int32)
    return ordered(bits, INF), (i >= begin) & (i < stop)


@triton.jit
def count_range(
    scores,
    begin,
    stop,
    tokens,
    low,
    high,
    prefix,
    level,
    token_stride,
    INF: tl.constexpr,
    TILE: tl.constexpr,
):
    """How many keys that begin with `prefix` have each digit at this level, from begin to stop."""
    count = tl.zeros((DIGITS,), tl.int32)
    for first in range(begin, stop, TILE):
        keys, inside = load_keys(scores, first, tokens, low, high, token_stride, INF, TILE)
        digits = keys >> tl.cast(24 - 8 * level, tl.uint32)
        digit = (digits & (DIGITS - 1)).to(tl.int32)
        count += tl.histogram(digit, DIGITS, mask=inside & (digits >> 8 == prefix))
    return count


@triton.jit
def choose(count, left):
    """The digit of the `left`-th largest key, from the counts of all."""
    not_below = tl.sum(count) - tl.cumsum(count) + count  # how many keys have a digit or a larger
    return tl.sum((not_below >= left).to(tl.int32)) - 1


@triton.jit
def above(count, digit):
    return tl.sum(tl.where(tl.arange(0, DIGITS) > digit, count, 0))


@triton.jit
def at(count, digit):
    return tl.sum(tl.where(tl.arange(0, DIGITS) == digit, count, 0))


@triton.jit
def store_range(
    scores,
    index,
    begin,
    stop,
    tokens,
    low,
    high,
    threshold,
    better,
    tied,
    ties,
    token_stride,
    INF: tl.constexpr,
    TILE: tl.constexpr,
):
    """Stores the selected tokens from begin to stop: before them there are `better` ones than the
    threshold, and `tied` ones equal to it, of which `ties` are selected in all.
    """
    for first in range(begin, stop, TILE):
        keys, inside = load_keys(scores, first, tokens, low, high, token_stride, INF, TILE)
        one = tl.where(keys > threshold, 1 << 16, (keys == threshold).to(tl.int32))
        one = tl.where(inside, one, 0)
        ranks = tl.cumsum(one)  # of better ones, and in the lower bits of tied ones
        rank = tied + (ranks & 0xFFFF)
        slot = better + (ranks >> 16) + tl.minimum(rank, ties) - 1
        token = first + tl.arange(0, TILE)
        taken = (one > 1) | ((one == 1) & (rank <= ties))
        tl.store(index + slot, token.to(tl.int32), mask=taken)
        last = tl.max(ranks)
        better += last >> 16
        tied += last & 0xFFFF


@triton.jit
def store_padding(index, filled, k, TILE: tl.constexpr):
    for first in range(filled, k, TILE):
        slot = first + tl.arange(0, TILE)
        tl.store(index + slot, -1, mask=slot < k)


@triton.jit(do_not_specialize=["k"])
def select(
    scores,
    start,
    end,
    index,
    tokens,
    k,
    row_stride,
    token_stride,
    LEVELS: tl.constexpr,
    INF: tl.constexpr,
    TILE: tl.constexpr,
):
    """Selects from a row."""
    row = tl.program_id(0).to(tl.int64)
    low, high = bounds(start, end, tokens, row)
    scores += row * row_stride
    index += row * k
    begin = low // TILE * TILE
    filled = tl.minimum(high - low, k)
    left = filled.to(tl.int32)
    prefix = tl.cast(0, tl.uint32)
    for level in range(LEVELS):
        count = count_range(
            scores, begin, high, tokens, low, high, prefix, level, token_stride, INF, TILE
        )
        digit = choose(count, left)
        left -= above(count, digit)
        prefix = prefix << 8 | digit.to(tl.uint32)
    none = tl.cast(0, tl.int32)
    threshold = prefix << (32 - 8 * LEVELS)
    store_range(
        scores,
        index,
        begin,
        high,
        tokens,
        low,
        high,
        threshold,
        none,
        none,
        left,
        token_stride,
        INF,
        TILE,
    )
    store_padding(index, filled, k, TILE)


@triton.jit
def narrow(counts, state, pieces, ADDED: tl.constexpr):
    """From what this program left behind in the launch before, and the counts of all pieces: the
    digits found so far, how many of the keys that begin with them to select, how many better ones
    there are in the pieces before its own, and how many of them.
    """
    piece = tl.program_id(0) % pieces
    state += tl.program_id(0).to(tl.int64) * 3
    prefix = tl.load(state).to(tl.uint32, bitcast=True)
    left = tl.load(state + 1)
    better = tl.load(state + 2)
    counts += (tl.program_id(0) - piece).to(tl.int64) * DIGITS
    d = tl.arange(0, DIGITS)[None, :]
    count = tl.zeros((DIGITS,), tl.int32)
    before = tl.zeros((DIGITS,), tl.int32)
    for first in range(0, pieces, ADDED):
        p = first + tl.arange(0, ADDED)[:, None]
        some = tl.load(counts + p * DIGITS + d, mask=p < pieces, other=0)
        count += tl.sum(some, 0)
        before += tl.sum(tl.where(p < piece, some, 0), 0)
    digit = choose(count, left)
    left -= above(count, digit)
    better += above(before, digit)
    return prefix << 8 | digit.to(tl.uint32), left, better, at(before, digit)


@triton.jit
def cut(low, high, pieces, TILE: tl.constexpr):
    """Where the piece of this program begins and stops: whole tiles."""
    piece = tl.program_id(0) % pieces
    tiles = tl.cdiv(high, TILE) - low // TILE
    size = tl.cdiv(tiles, pieces) * TILE
    begin = low // TILE * TILE + piece * size
    return begin, tl.minimum(begin + size, high)


@triton.jit(do_not_specialize=["k", "pieces", "level"])
def count(
    scores,
    start,
    end,
    counts_before,
    state_before,
    counts,
    state,
    tokens,
    k,
    pieces,
    level,
    row_stride,
    token_stride,
    INF: tl.constexpr,
    ADDED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Counts the digits of a piece at a level."""
    row = (tl.program_id(0) // pieces).to(tl.int64)
    low, high = bounds(start, end, tokens, row)
    prefix = tl.cast(0, tl.uint32)
    left = tl.minimum(high - low, k).to(tl.int32)
    better = tl.cast(0, tl.int32)
    if level > 0:
        prefix, left, better, _ = narrow(counts_before, state_before, pieces, ADDED)
    mine = state + tl.program_id(0).to(tl.int64) * 3
    tl.store(mine, prefix.to(tl.int32, bitcast=True))
    tl.store(mine + 1, left)
    tl.store(mine + 2, better)
    begin, stop = cut(low, high, pieces, TILE)
    found = count_range(
        scores + row * row_stride,
        begin,
        stop,
        tokens,
        low,
        high,
        prefix,
        level,
        token_stride,
        INF,
        TILE,
    )
    mine = counts + tl.program_id(0).to(tl.int64) * DIGITS
    tl.store(mine + tl.arange(0, DIGITS), found)


@triton.jit(do_not_specialize=["k", "pieces"])
def store(
    scores,
    start,
    end,
    counts,
    state,
    index,
    tokens,
    k,
    pieces,
    row_stride,
    token_stride,
    LEVELS: tl.constexpr,
    INF: tl.constexpr,
    ADDED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Stores the selected tokens of a piece."""
    row = (tl.program_id(0) // pieces).to(tl.int64)
    low, high = bounds(start, end, tokens, row)
    filled = tl.minimum(high - low, k)
    prefix, left, better, tied = narrow(counts, state, pieces, ADDED)
    begin, stop = cut(low, high, pieces, TILE)
    index += row * k
    store_range(
        scores + row * row_stride,
        index,
        begin,
        stop,
        tokens,
        low,
        high,
        prefix << (32 - 8 * LEVELS),
        better,
        tied,
        left,
        token_stride,
        INF,
        TILE,
    )
    if tl.program_id(0) % pieces == 0:
        store_padding(index, filled, k, TILE)


@triton.jit(do_not_specialize=["tokens", "tiles", "reach", "hop"])
def widen(
    scores,
    start,
    end,
    widened,
    tokens,
    tiles,
    reach,
    hop,
    row_stride,
    token_stride,
    INF: tl.constexpr,
    TILE: tl.constexpr,
):
    """The largest key of tokens -reach, -reach + hop, ..., reach away from each, of the last one of
    the range instead of any beyond it.
    """
    row = (tl.program_id(0) // tiles).to(tl.int64)
    low, high = bounds(start, end, tokens, row)
    token = (tl.program_id(0) % tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = (token >= low) & (token < high)
    largest = tl.zeros((TILE,), tl.uint32)
    for away in range(-reach, reach + 1, hop):
        near = tl.minimum(tl.maximum(token + away, low), high - 1)
        bits = tl.load(scores + row * row_stride + near * token_stride, mask=inside, other=0)
        largest = tl.maximum(largest, ordered(bits, INF))
    tl.store(widened + row * tokens + token, largest.to(tl.int32, bitcast=True), mask=inside)


def within_reach(
    bits: Tensor, proximity: int, start: Tensor | None, end: Tensor | None, inf: int
) -> Tensor:
    """The largest key within reach of each token: the windows of two are one that is wider."""
    rows, tokens = bits.shape
    tiles = triton.cdiv(tokens, TILE)

    def wider(bits: Tensor, inf: int | None, reach: int, hop: int) -> Tensor:
        out = bits.new_empty((rows, tokens), dtype=torch.int32)
        widen[(rows * tiles,)](
            bits, start, end, out, tokens, tiles, reach, hop, *bits.stride(), INF=inf, TILE=TILE
        )
        return out

    reach = min(proximity, NEAR)
    bits = wider(bits, inf, reach, 1)
    while reach < min(proximity, tokens):
        step = min(reach, proximity - reach)
        bits = wider(bits, None, step, 2 * step)
        reach += step
    return bits


def pieces_of(rows: int, tokens: int) -> int:
    """In how many pieces to cut each row."""
    if tokens <= ONE_PROGRAM:
        return 1
    return max(1, min(PROGRAMS // rows, isqrt(tokens // RATIO)))


def select_tokens(
    scores: Tensor, k: int, proximity: int, start: Tensor | None, end: Tensor | None
) -> Tensor:
    """``index (B, k)`` int32; `start` and `end` are None or ``(B,)``."""
    rows, tokens = scores.shape
    index = scores.new_empty((rows, k), dtype=torch.int32)
    if not rows:
        return index
    integer, inf, levels = FORMATS[scores.dtype]
    bits = scores.view(integer)
    start, end = (None if bound is None else bound.contiguous() for bound in (start, end))
    with torch.cuda.device_of(scores):
        if proximity and tokens:
            bits, inf = within_reach(bits, proximity, start, end, inf), None
        pieces = pieces_of(rows, tokens)
        if pieces == 1:
            tile = min(TILE, max(128, triton.next_power_of_2(tokens)))
            select[(rows,)](
                bits,
                start,
                end,
                index,
                tokens,
                k,
                *bits.stride(),
                LEVELS=levels,
                INF=inf,
                TILE=tile,
                num_warps=max(1, tile // 256),
            )
            return index
        counts = index.new_empty((2, rows, pieces, DIGITS.value))
        state = index.new_empty((2, rows, pieces, 3))
        grid, how = (rows * pieces,), {"INF": inf, "ADDED": ADDED, "TILE": TILE, "num_warps": 8}
        for level in range(levels):
            now, before = level % 2, 1 - level % 2
            count[grid](
                bits,
                start,
                end,
                counts[before],
                state[before],
                counts[now],
                state[now],
                tokens,
                k,
                pieces,
                level,
                *bits.stride(),
                **how,
            )
        store[grid](
            bits,
            start,
            end,
            counts[now],
            state[now],
            index,
            tokens,
            k,
            pieces,
            *bits.stride(),
            LEVELS=levels,
            **how,
        )
    return index
