"""A round of LoPA up to the model, in NumPy: the meaning.

Of each sequence, G positions to fill lie in blocks of L. Those of the blocks `added` so far that
hold the mask token and come before the first end-of-text token are open; all of them lie in the
window of W positions from `start` on. A prediction for them (token, prob, score) is at hand from
the round before.

1. Anchor (LoPA, equation 1). An open position takes its token
       if prob > threshold                                     (factor = 0), or
       if (r + 1) * (1 - prob) < factor, r its rank in its block by prob     (Fast-dLLM's rule),
   and where a block takes none by this, its open position with the best score does, if the block
   is fully activated: it is the first, or `activate_at` or more positions of the block before it
   were filled.
2. Lookaheads. Branch 0 is the anchor; branch j is the anchor and the j-th best by score of the
   positions that are still open, and takes its token too: as many branches as there are such
   positions, but for those with a score of -inf, and none where it would leave nothing open to
   be judged by although blocks are to come.
3. Pipeline (D2F). One block more is added where the anchor filled `add_at` or more of the last one,
   has no end of text, and the window has room.
4. Window. The model reads it. Its blocks that are complete in the anchor, from the first on, are
   frozen: all branches agree on them, they see nothing behind themselves, and the next window
   begins after them.

A position sees all those at its level or below: block b has level b + 1, with full attention the
open ones share the level of the first of them; what lies behind the blocks added is at level FAR.
Bidirectional models see everything at level 0 and freeze nothing.

Ties: the lowest position. Scores that are NaN count as -inf.
"""

import numpy as np

FAR = 2**30


def spawn(
    tokens,
    token,
    prob,
    score,
    added,
    start,
    thresholds,
    block_length,
    window,
    num_lookaheads,
    mask_token,
    eos_token,
    threshold,
    factor,
    add_at,
    activate_at,
    attention,
    shift,
):
    """Branches (see the public function) of sequences ``(B, G)``; added and start are ``(B,)``.

    So are `thresholds`, if any, which stand for the one.
    """
    batch, length = tokens.shape
    rows = num_lookaheads + 1
    branch = np.full((batch, rows, window), mask_token, np.int32)
    is_open = np.zeros((batch, rows, window), bool)
    extra = np.full((batch, rows), -1, np.int32)
    level = np.full((batch, window), FAR, np.int32)
    added, start_next = added.copy(), start.copy()
    block = np.arange(length) // block_length
    by_rank = factor > 0
    factor = np.float32(factor)
    if thresholds is None:
        thresholds = np.full(batch, threshold, np.float32)
    score = np.where(np.isnan(score), -np.inf, score)

    def still_open(x, blocks):
        ends = np.flatnonzero(x == eos_token)
        limit = ends[0] if len(ends) else length
        return (x == mask_token) & (block < blocks) & inside_window & (np.arange(length) < limit)

    for b in range(batch):
        inside_window = (np.arange(length) >= start[b]) & (np.arange(length) < start[b] + window)
        anchor = tokens[b].copy()
        before = still_open(anchor, added[b])
        known = before & (token[b] >= 0)
        for i in range(added[b]):
            inside = np.flatnonzero(known & (block == i))
            if by_rank:
                ranked = inside[np.lexsort((inside, -prob[b, inside]))]
                n = np.arange(2, len(ranked) + 2, dtype=np.float32)
                taken = ranked[n * (1 - prob[b, ranked]) < factor]
            else:
                taken = inside[prob[b, inside] > thresholds[b]]
            full = i == 0 or np.sum(~before & (block == i - 1)) >= activate_at
            if len(inside) and not len(taken) and full:
                taken = inside[[np.argmax(score[b, inside])]]
            anchor[taken] = token[b, taken]

        left = np.flatnonzero(still_open(anchor, added[b]) & (token[b] >= 0))
        left = left[np.lexsort((left, -score[b, left]))]
        left = left[score[b, left] > -np.inf][:num_lookaheads]
        extra[b, 1 : len(left) + 1] = left

        nothing_open = not still_open(anchor, added[b]).any()
        end = (added[b] + 1) * block_length
        room = (
            start[b] + window - (0 if nothing_open or start[b] + window >= length else block_length)
        )
        last = still_open(anchor, added[b]) & (block == added[b] - 1)
        if (
            end <= min(length, room)
            and eos_token not in anchor
            and block_length - last.sum() >= add_at
        ):
            added[b] += 1

        alone = still_open(anchor, added[b]).sum() == 1
        if alone and added[b] * block_length < length and eos_token not in anchor:
            # A lookahead would leave nothing to judge it by, and the next round nothing to do.
            extra[b] = -1

        if attention != "bidirectional":
            unfinished = still_open(anchor, added[b])
            while (
                start_next[b] < added[b] * block_length
                and not unfinished[start_next[b] :][:block_length].any()
            ):
                start_next[b] += block_length
        first = start_next[b] // block_length

        here = np.arange(start[b], min(start[b] + window, length))
        for j in range(rows):
            x = anchor.copy()
            if extra[b, j] >= 0:
                x[extra[b, j]] = token[b, extra[b, j]]
            branch[b, j, : len(here)] = x[here]
            if j == 0 or extra[b, j] >= 0:
                is_open[b, j, : len(here)] = still_open(x, added[b])[here]
        i = block[here]
        seen = np.where(i >= first, first, i) if attention == "full" else i
        level[b, : len(here)] = (
            0 if attention == "bidirectional" else np.where(i < added[b], seen + 1, FAR)
        )

    asked = np.zeros_like(is_open)
    asked[..., : window - shift] = is_open[..., shift:]
    return branch, is_open, asked, extra, level, added, start_next
