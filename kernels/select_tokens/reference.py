"""Selection of tokens in NumPy: what the operator means.

Of the tokens start <= m < end of a row, the k with the largest

    p[m] = max of scores[m'] over |m' - m| <= proximity, start <= m' < end

of equal ones the lower index, in ascending order; -1 behind them where there are fewer than k.
NaN counts as -inf, and -0 = +0.
"""

import numpy as np


def select_tokens(scores, k, proximity, start, end):
    """``index (B, k)`` int32; `start` and `end` are None or ``(B,)``."""
    rows, tokens = scores.shape
    index = np.full((rows, k), -1, np.int32)
    for row in range(rows):
        first = 0 if start is None else max(int(start[row]), 0)
        last = tokens if end is None else min(int(end[row]), tokens)
        if first >= last:
            continue
        p = sliding_maximum(scores[row, first:last], proximity)
        order = np.lexsort((np.arange(last - first), -p))  # by the last key first
        chosen = np.sort(order[:k])
        index[row, : len(chosen)] = first + chosen
    return index


def sliding_maximum(x, reach):
    """Of each and all that are up to `reach` away from it."""
    x = np.where(np.isnan(x), -np.inf, x)
    reach = min(reach, len(x))
    padded = np.pad(x, reach, constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(-1)
