"""ESA's scores of cached tokens in NumPy: what the operator means (arXiv 2502.14477, equation 4).

    f(m; c) = q_c · k_m                                     compressed, or all heads side by side
    F(m)    = max over c of (f(m; c) - max over m' of f(m'; c))

over the queries c of a chunk and the tokens m, m' of the range. Each query is compared with its own
best token, so that none drowns the others; the best of all queries counts. A single query has
nothing to be compared with: F = f, in the same order. NaN counts as -inf; a best token has 0 even
where it is infinite.
"""

import numpy as np


def token_scores(q, k, k_scale, start, end, num_queries, block_table):
    """``(B, N) float32`` of q ``(B, C, E)`` or ``(B, C, H, D)``; -inf outside start .. end - 1."""
    batch, chunk = q.shape[:2]
    q, k = q.astype(np.float64), k.astype(np.float64)
    if k_scale is not None:
        k = k * k_scale[..., None]
    if q.ndim == 4:  # the heads of a group share a key
        (heads, dim), groups = q.shape[2:], k.shape[2]
        q = q.reshape(batch, chunk, groups, heads // groups, dim).sum(3)
        q = q.reshape(batch, chunk, groups * dim)
        k = k.reshape(*k.shape[:2], groups * dim)
    if block_table is not None:
        holes = np.repeat(block_table < 0, k.shape[1], 1)
        k = k[block_table].reshape(batch, -1, k.shape[2])
    else:
        holes = np.zeros(k.shape[:2], bool)
    scores = np.full(k.shape[:2], -np.inf, np.float32)
    for b in range(batch):
        first = 0 if start is None else start[b]
        last = k.shape[1] if end is None else end[b]
        queries = q[b, : chunk if num_queries is None else num_queries[b]]
        f = queries @ k[b, first:last].T
        f = np.where(np.isnan(f) | holes[b, first:last], -np.inf, f)
        if len(queries) > 1 and f.size:
            best = f.max(1, keepdims=True)
            with np.errstate(invalid="ignore"):
                f = np.where(f == -np.inf, f, np.where(f == best, 0, f - best))
        if len(queries):
            scores[b, first:last] = f.max(0)
    return scores
