"""Attention over some of the cached tokens in NumPy: what the operators mean.

    out = Σ_j exp(s_j) v_j / Σ_j exp(s_j),   lse = log Σ_j exp(s_j),   s_j = scale · q · k_j

over the tokens j that a query attends to, head h with the keys and values of head h // (H / G).
Nothing to attend to: out = 0, lse = -inf.

far      the tokens 0 .. num_initial - 1 and those that are listed, each once, for every query
window   the tokens start .. p of a query at position p; the last of C queries stands at end - 1
"""

import numpy as np
from triselect.kernels.merge.reference import merge


def gather_attention(q, k, v, index, num_initial, end, block_table, scale):
    """``out (B, C, H, D)`` and ``lse (B, C, H)`` over far tokens."""
    k, v, tokens = unpaged(k, v, block_table)
    attended = np.stack([far(b, q, index, num_initial, end, tokens) for b in range(len(q))])
    return attention(q, k, v, attended, scale)


def window_attention(q, k, v, start, end, cos, sin, block_table, scale):
    """``out (B, C, H, D)`` and ``lse (B, C, H)`` over a window of tokens."""
    k, v, tokens = unpaged(k, v, block_table)
    attended = np.stack([window(b, q, start, end, tokens) for b in range(len(q))])
    return attention(q, rotated(k, start, cos, sin), v, attended, scale)


def selected_attention(
    q_far, q, k, v, index, num_initial, start, end, cos, sin, block_table, scale
):
    """``out (B, C, H, D)`` and ``lse (B, C, H)`` over both, in one softmax."""
    far_end = np.zeros(len(q), int) if start is None else start  # what is behind is the window's
    a = gather_attention(q_far, k, v, index, num_initial, far_end, block_table, scale)
    b = window_attention(q, k, v, start, end, cos, sin, block_table, scale)
    return merge(*a, *b)


def far(b, q, index, num_initial, end, tokens):
    """Which tokens ``(C, N)`` every query of sequence b attends to: those listed that exist."""
    last = len(tokens[b]) if end is None else end[b]
    mask = np.zeros(len(tokens[b]), bool)
    mask[:num_initial] = True
    mask[index[b][index[b] >= 0]] = True
    mask[last:] = False
    return np.broadcast_to(mask & tokens[b], (q.shape[1], len(mask)))


def window(b, q, start, end, tokens):
    """Which tokens ``(C, N)`` each query of sequence b attends to: those up to its own."""
    first = 0 if start is None else start[b]
    last = len(tokens[b]) if end is None else end[b]
    position = last - q.shape[1] + np.arange(q.shape[1])[:, None]
    j = np.arange(len(tokens[b]))
    return (j >= first) & (j <= position) & tokens[b]


def attention(q, k, v, attended, scale):
    batch, chunk, heads, _ = q.shape
    out = np.zeros((batch, chunk, heads, v.shape[-1]))
    lse = np.full((batch, chunk, heads), -np.inf)
    for b, c, h in np.ndindex(batch, chunk, heads):
        group = h // (heads // k.shape[2])
        j = np.flatnonzero(attended[b, c])
        if not len(j):
            continue
        s = k[b, j, group].astype(np.float64) @ q[b, c, h].astype(np.float64) * scale
        weight = np.exp(s - s.max())
        out[b, c, h] = weight @ v[b, j, group].astype(np.float64) / weight.sum()
        lse[b, c, h] = s.max() + np.log(weight.sum())
    return out, lse


def rotated(k, start, cos, sin):
    """Keys turned by the angles of their places in the window: rotate-half, (i, i + D / 2)."""
    if cos is None:
        return k
    k = k.astype(np.float64)
    half = k.shape[-1] // 2
    for b in range(len(k)):
        first = 0 if start is None else start[b]
        n = min(len(cos), k.shape[1] - first)
        c, s = cos[:n, None].astype(np.float64), sin[:n, None].astype(np.float64)
        x, y = (k[b, first : first + n, :, part].copy() for part in halves(half))
        k[b, first : first + n, :, :half] = x * c - y * s
        k[b, first : first + n, :, half:] = y * c + x * s
    return k


def halves(half):
    return slice(None, half), slice(half, None)


def unpaged(k, v, block_table):
    """Keys and values ``(B, N, G, D)``, and which tokens ``(B, N)`` exist."""
    if block_table is None:
        return k, v, np.ones(k.shape[:2], bool)
    tokens = np.repeat(block_table >= 0, k.shape[1], 1)
    k, v = (x[block_table].reshape(*tokens.shape, *x.shape[2:]) for x in (k, v))
    return k, v, tokens
