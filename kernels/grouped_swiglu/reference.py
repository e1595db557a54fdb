"""Experts of a mixture, each a SwiGLU network, over rows in their order, in NumPy: the meaning.

Expert e has the rows offsets[e] to offsets[e + 1] - 1. With x a row and W its expert's weights:

    g, u = W_gate x, W_up x        gate_up[e] has gate's rows first, then up's
    h    = g * sigmoid(g) * u      (SwiGLU, Shazeer 2020)
    y    = W_down h

Rows behind the last expert's are zero. Weights of 8 bits are w = q * scale, with a scale of each
output channel (int8), or of each block of 128 x 128 (float8 e4m3, as DeepSeek-V3's checkpoints).
"""

from itertools import pairwise

import numpy as np

BLOCK = 128


def grouped_swiglu_up(rows, gate_up, offsets, source, scale):
    """h ``(S, I)`` of rows ``(R, H)`` and gate_up ``(E, 2I, H)``.

    Row i of h is of ``rows[source[i]]``, or of ``rows[i]`` where there is no `source`.
    """
    count = len(rows) if source is None else len(source)
    weights = dequantised(gate_up, scale)
    h = np.zeros((count, gate_up.shape[1] // 2))
    for e, (first, last) in enumerate(pairwise(offsets)):
        which = slice(first, last) if source is None else source[first:last]
        gate, up = np.split(rows[which].astype(np.float64) @ weights[e].T, 2, axis=1)
        h[first:last] = gate * sigmoid(gate) * up
    return h


def grouped_swiglu_down(h, down, offsets, scale):
    """y ``(S, H)`` of h ``(S, I)`` and down ``(E, H, I)``."""
    weights = dequantised(down, scale)
    y = np.zeros((len(h), down.shape[1]))
    for e, (first, last) in enumerate(pairwise(offsets)):
        y[first:last] = h[first:last].astype(np.float64) @ weights[e].T
    return y


def dequantised(q, scale):
    """The weights ``(E, N, K)`` in float64."""
    q = q.astype(np.float64)
    if scale is None:
        return q
    if scale.ndim == 2:
        return q * scale[:, :, None]
    each = scale.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)
    return q * each[:, : q.shape[1], : q.shape[2]]


def sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))
