"""Tokens and their confidence in Triton.

A program sums up a piece of a row tile by tile: the tile's largest logit first, then exponentials
of registers. Where a row is one piece the program finishes it; else a second launch merges the
pieces, in an order that depends on the vocabulary alone.

Floor: the bytes of the logits, once; of few rows two launches, of about 2 microseconds each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = 2**13  # tokens of a program
TILE = 2**11  # tokens that it reads at a time
NUMBERS = 7  # of a piece: largest, s, t, second, key, logit and token
SCORES = {"max_prob": 0, "margin": 1, "neg_entropy": 2}


@triton.jit
def unit(bits):
    """(bits + 1/2) / 2**32, rounded once."""
    high = (bits >> 16).to(tl.int32).to(tl.float32)
    low = (bits & 0xFFFF).to(tl.int32).to(tl.float32)
    return (high * 65536.0 + (low + 0.5)) * 2.0**-32


@triton.jit
def gumbel(bits):
    """-log(-log(1 - u)). Of u and 1 - u, the small one keeps all its digits."""
    u = unit(bits)
    left = tl.where(u < 0.5, 1.0 - u, unit(bits ^ 0xFFFFFFFF))
    # log(1 - u) = log(left) * u / (1 - left): the rounding of 1 - u cancels.
    log = tl.log(left)
    small = tl.where(left == 1.0, -u, log * (u / tl.where(left == 1.0, 1.0, 1.0 - left)))
    return -tl.log(-tl.where(u < 0.5, small, log))


@triton.jit
def noise(seed, position, step, counter, TILE: tl.constexpr):
    """Of TILE tokens, the first of which is 4 * counter."""
    counters = (counter + tl.arange(0, TILE // 4)).to(tl.uint32)
    still = tl.zeros((TILE // 4,), tl.uint32)
    x0, x1, x2, x3 = tl.philox(
        seed, counters, still + position.to(tl.uint32), still + step.to(tl.uint32), still
    )
    return gumbel(tl.interleave(tl.interleave(x0, x2), tl.interleave(x1, x3)))


@triton.jit
def store_row(
    m, s, t, second, key, x, token, row, out, prob, score, parts, scale, SCORE: tl.constexpr
):
    """What is said of a row, by its numbers."""
    top = m * scale
    sure = (tl.abs(top) < float("inf")) & (s < float("inf")) & (s > 0)
    p = tl.where(sure, tl.exp((x - m) * scale) / s, 0.0)
    if SCORE == 0:
        found = p
    elif SCORE == 1:
        found = (1.0 - tl.exp((second - m) * scale)) / s
    else:
        found = t / s - tl.log(s)
    tl.store(out + row, token)
    tl.store(prob + row, p)
    tl.store(score + row, tl.where(sure, found, -float("inf")))
    parts += row * 6
    tl.store(parts, top)
    tl.store(parts + 1, s)
    tl.store(parts + 2, t)
    tl.store(parts + 3, second * scale)
    tl.store(parts + 4, key)
    tl.store(parts + 5, x * scale)


@triton.jit
def store_nothing(row, out, prob, score, parts):
    """Of a row that is not asked for."""
    tl.store(out + row, -1)
    tl.store(prob + row, 0.0)
    tl.store(score + row, -float("inf"))
    i = tl.arange(0, 8)
    tl.store(parts + row * 6 + i, tl.where((i == 1) | (i == 2), 0.0, -float("inf")), mask=i < 6)


@triton.jit
def load_tile(logits, begin, stop, mask, TILE: tl.constexpr):
    """Logits from `begin` on as float32, -inf from `stop` on, before 0 and of the mask token."""
    at = begin + tl.arange(0, TILE)
    inside = (at >= 0) & (at < stop)
    x = tl.load(logits + at, mask=inside, other=-float("inf")).to(tl.float32)
    return at, tl.where(at == mask, -float("inf"), x)


@triton.jit
def cleaned(x):
    return tl.where(x == x, x, -float("inf"))


@triton.jit(do_not_specialize=["mask", "first", "scale"])
def sum_up(
    logits,
    rows,
    seeds,
    positions,
    steps,
    temperatures,
    pieces,
    out,
    prob,
    score,
    parts,
    tokens,
    row_stride,
    count,
    mask,
    first,
    shift,
    scale,
    SCORE: tl.constexpr,
    PIECE: tl.constexpr,
    TILE: tl.constexpr,
):
    """A piece of a row. Drawn tokens are those of whole counters: tiles begin `shift` earlier."""
    row = (tl.program_id(0) // count).to(tl.int64)
    piece = tl.program_id(0) % count
    if rows is not None:  # noqa: SIM102
        if not tl.load(rows + row):
            if count == 1:
                store_nothing(row, out, prob, score, parts)
            return
    if temperatures is not None:
        scale = 1.0 / tl.load(temperatures + row)
    logits += row * row_stride
    seeded: tl.constexpr = seeds is not None
    if seeded:
        seed = tl.load(seeds + row)
        position = tl.load(positions + row)
        step = tl.load(steps + row)
    begin = piece * PIECE - shift
    stop = tl.minimum(begin + PIECE, tokens)
    m = tl.cast(-float("inf"), tl.float32)
    second = m
    key = m
    chosen = m  # the logit of the token
    at_best = tl.cast(0, tl.int32)  # where the tile of the largest logit begins
    token = tl.where(mask == 0, 1, 0).to(tl.int32)
    token = tl.where(piece == 0, token, PIECE * piece)
    sums = tl.zeros((TILE,), tl.float32)
    weighted = tl.zeros((TILE,), tl.float32)
    for tile in range(begin, stop, TILE):
        at, x = load_tile(logits, tile, stop, mask, TILE)
        clean = cleaned(x)
        top = tl.max(clean)
        second = tl.maximum(second, tl.minimum(top, m))
        above = tl.maximum(m, top)
        base = tl.where(above == -float("inf"), 0.0, above)
        at_best = tl.where(top > m, tile, at_best).to(tl.int32)
        fall = tl.maximum((m - base) * scale, -104.0)
        weight = tl.where(m == -float("inf"), 0.0, tl.exp(fall))
        d = (x - base) * scale
        d = tl.where(d < -104.0, -104.0, d)  # NaN stays one, as it would not in a maximum
        e = tl.exp(d)
        weighted = (weighted + sums * fall) * weight + e * d
        sums = sums * weight + e
        m = above
        if seeded:
            z = clean * scale + noise(seed, position, step, (first + tile) // 4, TILE)
            best = tl.max(z)
            if best > key:
                token = tl.min(tl.where(z == best, at, 2**31 - 1))
                chosen = tl.max(tl.where(at == token, clean, -float("inf")))
                key = best
    if m > -float("inf"):
        at, x = load_tile(logits, at_best, stop, mask, TILE)
        x = cleaned(x)
        largest = tl.min(tl.where(x == m, at, 2**31 - 1))
        second = tl.maximum(second, tl.max(tl.where(at == largest, -float("inf"), x)))
        if not seeded:
            token = largest
            key = m
            chosen = m
    s = tl.sum(sums)
    t = tl.sum(weighted)
    if count == 1:
        store_row(
            m, s, t, second, key, chosen, first + token, row, out, prob, score, parts, scale, SCORE
        )
    else:
        pieces += tl.program_id(0).to(tl.int64) * 7
        tl.store(pieces, m)
        tl.store(pieces + 1, s)
        tl.store(pieces + 2, t)
        tl.store(pieces + 3, second)
        tl.store(pieces + 4, key)
        tl.store(pieces + 5, chosen)
        tl.store(pieces + 6, (first + token).to(tl.int32).to(tl.float32, bitcast=True))


@triton.jit(do_not_specialize=["scale"])
def merge(
    rows,
    temperatures,
    pieces,
    out,
    prob,
    score,
    parts,
    count,
    scale,
    SCORE: tl.constexpr,
    PIECES: tl.constexpr,
):
    """All pieces of a row."""
    row = tl.program_id(0).to(tl.int64)
    if rows is not None:  # noqa: SIM102
        if not tl.load(rows + row):
            store_nothing(row, out, prob, score, parts)
            return
    if temperatures is not None:
        scale = 1.0 / tl.load(temperatures + row)
    i = tl.arange(0, PIECES)
    here = i < count
    pieces += (row * count + i) * 7
    m_i = tl.load(pieces, mask=here, other=-float("inf"))
    s_i = tl.load(pieces + 1, mask=here, other=0.0)
    t_i = tl.load(pieces + 2, mask=here, other=0.0)
    second_i = tl.load(pieces + 3, mask=here, other=-float("inf"))
    key_i = tl.load(pieces + 4, mask=here, other=-float("inf"))
    x_i = tl.load(pieces + 5, mask=here, other=-float("inf"))
    token_i = tl.load(pieces + 6, mask=here, other=0.0).to(tl.int32, bitcast=True)
    m = tl.max(m_i)
    base = tl.where(m == -float("inf"), 0.0, m)
    fall = tl.maximum((m_i - base) * scale, -104.0)
    fall = tl.where(m_i == m, 0.0, fall)
    weight = tl.exp(fall)
    s = tl.sum(weight * s_i)
    t = tl.sum(weight * (t_i + s_i * fall))
    largest = tl.min(tl.where(m_i == m, i, PIECES))
    second = tl.max(tl.maximum(second_i, tl.where(i == largest, -float("inf"), m_i)))
    key = tl.max(key_i)
    token = tl.min(tl.where(here & (key_i == key), token_i, 2**31 - 1))
    chosen = tl.max(tl.where(here & (token_i == token), x_i, -float("inf")))
    store_row(m, s, t, second, key, chosen, token, row, out, prob, score, parts, scale, SCORE)


def token_confidence(
    logits: Tensor,
    rows: Tensor | None,
    seed: Tensor | None,
    position: Tensor | None,
    step: Tensor | None,
    temperatures: Tensor | None,
    temperature: float,
    score: str,
    mask_token: int,
    first_token: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(R,)`` token, prob and score, and the six numbers ``(R, 6)`` of the reference."""
    number, tokens = logits.shape
    token = logits.new_empty((number,), dtype=torch.int32)
    prob, found = (logits.new_empty((number,), dtype=torch.float32) for _ in range(2))
    parts = logits.new_empty((number, 6), dtype=torch.float32)
    if not number:
        return token, prob, found, parts
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, seed, position, step, temperatures = (
        None if x is None else x.contiguous() for x in (rows, seed, position, step, temperatures)
    )
    shift = 0 if seed is None else first_token % 4
    count = triton.cdiv(tokens + shift, PIECE)
    pieces = parts.new_empty((number, count, NUMBERS) if count > 1 else (0,))
    tile = min(TILE, max(128, triton.next_power_of_2(tokens + shift)))
    results, how = (token, prob, found, parts), {"SCORE": SCORES[score]}
    with torch.cuda.device_of(logits):
        sum_up[(number * count,)](
            logits,
            rows,
            seed,
            position,
            step,
            temperatures,
            pieces,
            *results,
            tokens,
            logits.stride(0),
            count,
            mask_token - first_token,
            first_token,
            shift,
            1 / temperature,
            PIECE=PIECE,
            TILE=tile,
            num_warps=max(1, tile // 512),
            **how,
        )
        if count > 1:
            block = triton.next_power_of_2(count)
            merge[(number,)](
                rows,
                temperatures,
                pieces,
                *results,
                count,
                1 / temperature,
                PIECES=block,
                num_warps=1,
                **how,
            )
    return token, prob, found, parts
