"""ESA in a model, token by token in float64: what `attend` must give for one sequence."""

from typing import NamedTuple

import numpy as np


class Answer(NamedTuple):
    out: np.ndarray  # (T, H, D)
    margin: float  # between the scores of the last token that was selected and the next one


def rotate(x, positions, inv_freq, scaling=1.0):
    """``x (T, heads, D)``."""
    angles = np.asarray(positions, float)[:, None] * inv_freq
    cos, sin = (f(angles)[:, None] * scaling for f in (np.cos, np.sin))
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def pooled(scores, reach):
    return np.array([scores[max(0, m - reach) : m + reach + 1].max() for m in range(len(scores))])


def esa(q, k, v, config, chunks, inv_freq=None, scaling=1.0, compressor=None):
    """Chunks of so many tokens each; ``q (T, H, D)``, ``k, v (T, G, D)`` before rotation."""
    heads, groups, dim = q.shape[1], k.shape[1], q.shape[2]
    inv_freq = np.zeros(dim // 2) if inv_freq is None else inv_freq
    out, margin, t0 = np.empty_like(q), np.inf, 0
    own = np.arange(heads) // (heads // groups)  # the key head of each query head
    absolute = config.positions == "original"
    for count in chunks:
        t1 = t0 + count
        start = max(0, t0 - config.local)
        first = min(config.initial, start)
        far_q = np.stack([rotate(q[t : t + 1], [config.local], inv_freq)[0] for t in range(t0, t1)])
        if absolute:
            to_score = rotate(q[t0:t1], range(t0, t1), inv_freq, scaling)
            far_keys = rotate(k[:start], range(start), inv_freq, scaling)
        else:
            to_score, far_keys = far_q, k[:start]

        chosen = np.arange(first, start)
        if len(chosen) > config.top_k:
            if compressor is None:
                f = np.einsum("chd,mhd->cm", to_score, far_keys[first:][:, own])
            else:
                folded = far_q.reshape(count, groups, -1, dim).sum(2).reshape(count, -1)
                q_maps = (compressor.query, compressor.query_bias)
                k_maps = (compressor.key, compressor.key_bias)
                a, b = (
                    x @ w.double().numpy().T + (0 if bias is None else bias.double().numpy())
                    for x, (w, bias) in (
                        (folded, q_maps),
                        (k[first:start].reshape(start - first, -1), k_maps),
                    )
                )
                f = a @ b.T
            score = f[0] if count == 1 else (f - f.max(1, keepdims=True)).max(0)
            score = pooled(score, config.proximity)
            order = np.lexsort((np.arange(len(score)), -score))
            last, after = score[order[config.top_k - 1]], score[order[config.top_k]]
            margin = min(margin, np.inf if last == after else last - after)
            chosen = first + np.sort(order[: config.top_k])

        far = np.concatenate([np.arange(first), chosen]).astype(int)
        for t in range(t0, t1):
            if absolute:
                at, keys = t, rotate(k[: t + 1], range(t + 1), inv_freq, scaling)
                near_keys, seen_far = keys[start:], keys[far]
                query = rotate(q[t : t + 1], [at], inv_freq, scaling)[0]
                far_query = query
            else:
                near_keys = rotate(k[start : t + 1], range(t + 1 - start), inv_freq, scaling)
                query = rotate(q[t : t + 1], [t - start], inv_freq, scaling)[0]
                far_query, seen_far = far_q[t - t0] * scaling**2, k[far]
            logits = np.concatenate(
                [
                    np.einsum("hd,mhd->hm", far_query, seen_far[:, own]),
                    np.einsum("hd,mhd->hm", query, near_keys[:, own]),
                ],
                1,
            )
            p = np.exp(logits / dim**0.5 - (logits / dim**0.5).max(1, keepdims=True))
            values = np.concatenate([v[far], v[start : t + 1]])[:, own]
            out[t] = np.einsum("hm,mhd->hd", p / p.sum(1, keepdims=True), values)
        t0 = t1
    return Answer(out, float(margin))
