"""The kernel of all three operators: a far list of tokens, a window of tokens, or both.

A program holds a tile of rows, each a query and a head, of one sequence and one key head: a decode
step has all heads of a group in one tile. Of the tokens, tile by tile the far list and then the
window, it takes an equal share of what its rows attend to.
"""

import triton
import triton.language as tl
from triselect.kernels.gather_attention.triton.tile import (
    add_values,
    add_values_seen,
    load_halves,
    load_rows,
    locate,
    online_softmax,
    rotate,
)

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def listed_tokens(index, num_initial, entries, entry_stride, j):
    """Tokens j of the far list, the initial ones and then the entries of a row of `index`, or -1.

    An entry not above the one before it, or among the initial tokens, has been counted.
    """
    i = j - num_initial
    listed = (i >= 0) & (i < entries)
    at = index + i.to(tl.int64) * entry_stride
    entry = tl.load(at, mask=listed, other=-1).to(tl.int64)
    before = tl.load(at - entry_stride, mask=listed & (i > 0), other=-1).to(tl.int64)
    new = listed & (entry > before) & (entry >= num_initial)
    return tl.where(i < 0, j.to(tl.int64), tl.where(new, entry, -1))


@triton.jit(
    do_not_specialize=["queries", "num_initial", "entries", "tokens", "blocks", "angles", "row_tiles"]
)
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
    row_tiles,
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
    DOT: tl.constexpr,
):
    b = (tl.program_id(0) // (row_tiles * GROUPS)).to(tl.int64)
    group = tl.program_id(0) // row_tiles % GROUPS
    first_row = tl.program_id(0) % row_tiles * ROWS
    row = first_row + tl.arange(0, ROWS)
    c = row // SHARED
    head = group * SHARED + row % SHARED
    live = c < queries
    k += group.to(tl.int64) * k_head
    v += group.to(tl.int64) * v_head

    first = tl.zeros((), tl.int64)
    if start is not None:
        first += tl.load(start + b * start_batch)
    last = tl.zeros((), tl.int64) + tokens
    if end is not None:
        last = tl.load(end + b * end_batch).to(tl.int64)

    far_tiles = 0
    far_end = tl.minimum(last if q is None else first, tokens)
    if q_far is not None:
        index += b * index_batch
        far_tiles = tl.where(far_end > 0, tl.cdiv(num_initial + entries, TOKENS), 0)
    near_tiles = 0
    common_tiles = 0
    if q is not None:
        # In the window the queries stand at position .. position + queries - 1.
        position = last - queries
        near = tl.minimum(tl.maximum(first, 0), tokens)
        near_end = tl.minimum(last, tokens)
        if cos is not None:
            near_end = tl.minimum(near_end, first + angles)
        last_query = tl.minimum((first_row + ROWS - 1) // SHARED, queries - 1)
        near_end = tl.maximum(tl.minimum(near_end, position + last_query + 1), near)
        near_tiles = tl.cdiv(near_end - near, TOKENS).to(tl.int32)
        common_tiles = near_tiles
        if CAUSAL:  # all rows of the tile see the first of the tiles, as far as they are tokens
            common = (position + first_row // SHARED + 1 - near) // TOKENS
            common_tiles = tl.minimum(tl.maximum(common, 0), near_tiles).to(tl.int32)

    share = tl.program_id(1).to(tl.int64)
    tiles = far_tiles + near_tiles
    begin = (tiles * share // tl.num_programs(1)).to(tl.int32)
    stop = (tiles * (share + 1) // tl.num_programs(1)).to(tl.int32)

    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    factor = scale * LOG2_E
    t = tl.arange(0, TOKENS)

    if q_far is not None:
        at = b * q_far_batch + c.to(tl.int64) * q_far_query + head.to(tl.int64) * q_far_head
        q1, q2 = load_halves(q_far, at, live, D, HALF, DOT)
        for i in range(begin, tl.minimum(stop, far_tiles)):
            token = listed_tokens(index, num_initial, entries, index_entry, i * TOKENS + t)
            real = (token >= 0) & (token < far_end)
            block, place, real = locate(
                token, real, b, block_table, table_batch, table_page, blocks, SIZE
            )
            k1, k2 = load_halves(k, block * k_block + place * k_token, real, D, HALF, DOT)
            values = load_rows(v, block * v_block + place * v_token, real, D, WIDTH, DOT)
            weight, top, total, shrink = online_softmax(
                top, total, q1, q2, k1, k2, real[None, :], factor
            )
            acc = add_values(acc, weight, shrink, values)

    if q is not None:
        at = b * q_batch + c.to(tl.int64) * q_query + head.to(tl.int64) * q_head
        q1, q2 = load_halves(q, at, live, D, HALF, DOT)
        begin = tl.maximum(begin - far_tiles, 0)
        stop -= far_tiles
        for masked in tl.static_range(2 if CAUSAL else 1):
            low = tl.maximum(begin, common_tiles) if masked else begin
            high = stop if masked else tl.minimum(stop, common_tiles)
            for i in range(low, high):
                token = near + tl.cast(i, tl.int64) * TOKENS + t
                real = token < near_end
                block, place, real = locate(
                    token, real, b, block_table, table_batch, table_page, blocks, SIZE
                )
                k1, k2 = load_halves(k, block * k_block + place * k_token, real, D, HALF, DOT)
                values = load_rows(v, block * v_block + place * v_token, real, D, WIDTH, DOT)
                if cos is not None:
                    angle = token - first
                    x = load_rows(cos, angle * cos_row, real, D // 2, HALF, tl.float32)
                    y = load_rows(sin, angle * sin_row, real, D // 2, HALF, tl.float32)
                    k1, k2 = rotate(k1, k2, x, y)
                seen = real[None, :]
                if masked:
                    seen = seen & (token[None, :] <= position + c[:, None])
                weight, top, total, shrink = online_softmax(
                    top, total, q1, q2, k1, k2, seen, factor
                )
                if masked:
                    acc = add_values_seen(acc, weight, shrink, values, seen)
                else:
                    acc = add_values(acc, weight, shrink, values)

    # Where nothing was seen, `total` is 0 and `top` is -inf.
    acc /= tl.where(total == 0, 1.0, total)[:, None]
    batch = tl.num_programs(0) // (row_tiles * GROUPS)
    at = ((share * batch + b) * queries + c) * (GROUPS * SHARED) + head
    tl.store(lse + at, (top + tl.log2(total)) * LN_2, mask=live)
    d = tl.arange(0, WIDTH)[None, :]
    tl.store(out + at[:, None] * D + d, acc, mask=live[:, None] & (d < D))
