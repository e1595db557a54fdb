"""The kernel of all three operators: a far list of tokens, a window of tokens, or both.

A program holds a tile of rows, each a query and a head, of one sequence and one key head: a decode
step has all heads of a group in one tile. Of the tokens, tile by tile the far list and then the
window, it takes an equal share of what its rows attend to.
"""

import triton
import triton.language as tl
from triselect.kernels.gather_attention.triton.tile import (
    load_halves,
    load_rows,
    locate,
    online_softmax,
    rotate,
    without_wild,
)
from triselect.kernels.shared.dot import dot, rounded

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def within(x, low, high):
    """In 32 bits: what is out of range is as far out as can be."""
    return tl.minimum(tl.maximum(x, low), high).to(tl.int32)


@triton.jit
def listed_tokens(index, num_initial, entries, entry_stride, tokens, j):
    """Tokens j of the far list, the initial ones and then the entries of a row of `index`, or -1.

    An entry not above the one before it, or among the initial tokens, has been counted.
    """
    i = j - num_initial
    at = index + i.to(tl.int64) * entry_stride
    entry = tl.load(at, mask=(i >= 0) & (i < entries), other=-1)
    before = tl.load(at - entry_stride, mask=(i > 0) & (i < entries), other=-1)
    # In 32 bits, where what is out of range stays so.
    entry = tl.minimum(tl.maximum(entry, -1), tokens).to(tl.int32)
    before = tl.minimum(tl.maximum(before, num_initial - 1), tokens).to(tl.int32)
    return tl.where(i < 0, j, tl.where(entry > before, entry, -1))


@triton.jit(do_not_specialize=["queries", "num_initial", "entries", "tokens", "blocks", "angles"])
def attend(
    q_far,
    q,
    k,
    v,
    index,
    start,
    end,
    cos,
    sin,
    block_table,
    out,
    lse,
    queries,
    num_initial,
    entries,
    tokens,
    blocks,
    angles,
    scale,
    q_far_batch,
    q_far_query,
    q_far_head,
    q_batch,
    q_query,
    q_head,
    k_block,
    k_token,
    k_head,
    v_block,
    v_token,
    v_head,
    index_batch,
    index_entry,
    start_batch,
    end_batch,
    cos_row,
    sin_row,
    table_batch,
    table_page,
    GROUPS: tl.constexpr,
    SHARED: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
):
    b = (tl.program_id(0) // GROUPS).to(tl.int64)
    group = tl.program_id(0) % GROUPS
    first_row = tl.program_id(1) * ROWS
    r = first_row + tl.arange(0, ROWS)
    c = r // SHARED
    head = group * SHARED + r % SHARED
    live = c < queries
    k += group.to(tl.int64) * k_head
    v += group.to(tl.int64) * v_head

    first = tl.zeros((), tl.int64)
    if start is not None:
        first += tl.load(start + b * start_batch)
    last = first * 0 + tokens
    if end is not None:
        last = tl.load(end + b * end_batch).to(tl.int64)

    far_tiles = 0
    if q_far is not None:
        far_end = last
        if q is not None:
            far_end = first
        far_end = within(far_end, 0, tokens)
        index += b * index_batch
        far_tiles = tl.where(far_end > 0, tl.cdiv(num_initial + entries, TOKENS), 0)
    near_tiles = 0
    common_tiles = 0
    if q is not None:
        # Tokens of the window are counted from its first, and so is the place of the first query.
        near = within(first, 0, tokens)
        length = within(last, near, tokens) - near
        turned = within(near - first, 0, angles)
        if cos is not None:
            length = tl.minimum(length, angles - turned)
        place = within(last - queries - near, -queries, tokens)
        last_query = tl.minimum((first_row + ROWS - 1) // SHARED, queries - 1)
        length = tl.maximum(tl.minimum(length, place + last_query + 1), 0)
        near_tiles = tl.cdiv(length, TOKENS)
        common_tiles = near_tiles
        if CAUSAL:  # all rows of the tile see all tokens of the first of these
            common = tl.maximum(place + first_row // SHARED + 1, 0) // TOKENS
            common_tiles = tl.minimum(common, near_tiles)

    tiles = far_tiles + near_tiles
    each = tl.cdiv(tiles, tl.num_programs(2))
    begin = tl.minimum(tl.program_id(2) * each, tiles)
    stop = tl.minimum(begin + each, tiles)

    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    factor = scale * LOG2_E
    t = tl.arange(0, TOKENS)

    if q_far is not None:
        at = b * q_far_batch + c.to(tl.int64) * q_far_query + head.to(tl.int64) * q_far_head
        q1, q2 = load_halves(q_far, at, live, D, HALF)
        for i in range(begin, tl.minimum(stop, far_tiles)):
            j = i * TOKENS + t
            token = listed_tokens(index, num_initial, entries, index_entry, tokens, j)
            real = (token >= 0) & (token < far_end)
            block, row, real = locate(
                token, real, b, block_table, table_batch, table_page, blocks, SIZE
            )
            k1, k2 = load_halves(k, block * k_block + row * k_token, real, D, HALF)
            values = load_rows(v, block * v_block + row * v_token, real, D, WIDTH)
            weight, top, total, shrink = online_softmax(
                top, total, q1, q2, k1, k2, real[None, :], factor
            )
            acc = dot(weight, values, acc * shrink[:, None])

    if q is not None:
        at = b * q_batch + c.to(tl.int64) * q_query + head.to(tl.int64) * q_head
        q1, q2 = load_halves(q, at, live, D, HALF)
        begin = tl.maximum(begin - far_tiles, 0)
        stop -= far_tiles
        for masked in tl.static_range(2 if CAUSAL else 1):
            low = tl.maximum(begin, common_tiles) if masked else begin
            high = stop if masked else tl.minimum(stop, common_tiles)
            for i in range(low, high):
                j = i * TOKENS + t
                real = j < length
                block, row, real = locate(
                    near + j, real, b, block_table, table_batch, table_page, blocks, SIZE
                )
                k1, k2 = load_halves(k, block * k_block + row * k_token, real, D, HALF)
                values = load_rows(v, block * v_block + row * v_token, real, D, WIDTH)
                if cos is not None:
                    angle = (turned + j).to(tl.int64)
                    x = load_rows(cos, angle * cos_row, real, D // 2, HALF)
                    y = load_rows(sin, angle * sin_row, real, D // 2, HALF)
                    k1, k2 = rotate(k1, k2, x, y)
                seen = real[None, :]
                if masked:
                    seen = seen & (j[None, :] <= place + c[:, None])
                weight, top, total, shrink = online_softmax(
                    top, total, q1, q2, k1, k2, seen, factor
                )
                if masked:
                    total, values = without_wild(total, values, seen)
                acc = dot(weight, values, acc * shrink[:, None])

    # Where nothing was seen, `total` is 0 and `top` is -inf.
    acc /= tl.where(total == 0, 1.0, total)[:, None]
    sequence = tl.program_id(2).to(tl.int64) * (tl.num_programs(0) // GROUPS) + b
    at = (sequence * queries + c) * (GROUPS * SHARED) + head
    tl.store(lse + at, (top + tl.log2(total)) * LN_2, mask=live)
    d = tl.arange(0, WIDTH)[None, :]
    acc = rounded(acc, out.dtype.element_ty)
    tl.store(out + at[:, None] * D + d, acc, mask=live[:, None] & (d < D))
