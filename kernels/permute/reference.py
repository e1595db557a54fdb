"""Permutation of token copies by expert in NumPy: what the operator means.

Assignment n = t * K + k sends token t to expert e_n. Sorting assignments by expert, those of one
expert in the order of n, gives rows; row i is a copy of token source[i], expert e has the rows
offsets[e] to offsets[e + 1] - 1, and assignment (t, k) has row slot_of[t, k].

An expert outside 0 .. E - 1 is padding: it has no row. Where there is nothing stands -1.
"""

import numpy as np


def permute(experts, num_experts):
    """``source (T * K,)``, ``slot_of (T, K)`` and ``offsets (E + 1,)``, all int32."""
    tokens, k = experts.shape
    flat = experts.reshape(-1)
    real = (flat >= 0) & (flat < num_experts)
    order = np.argsort(np.where(real, flat, num_experts), kind="stable")  # rows, then padding
    rows = int(real.sum())
    source = np.full(tokens * k, -1, np.int32)
    source[:rows] = order[:rows] // k
    slot_of = np.full(tokens * k, -1, np.int32)
    slot_of[order[:rows]] = np.arange(rows)
    load = np.bincount(flat[real], minlength=num_experts)
    offsets = np.concatenate(([0], np.cumsum(load))).astype(np.int32)
    return source, slot_of.reshape(tokens, k), offsets
