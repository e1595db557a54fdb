"""What experts say about a token, in NumPy: what the operator means.

    out_t = sum over k of w_tk (row of slot_tk + bias of expert_tk), + residuals

An assignment without a row (slot -1), or without an expert where there is a bias, says nothing.
"""

import numpy as np


def finalize(rows, weights, slot_of, experts, bias, residual, residual2):
    """``out (T, H)``."""
    rows, weights = rows.astype(np.float64), weights.astype(np.float64)
    out = np.zeros((len(slot_of), rows.shape[1]))
    for t, k in np.ndindex(slot_of.shape):
        if slot_of[t, k] < 0 or (bias is not None and experts[t, k] < 0):
            continue
        said = rows[slot_of[t, k]]
        if bias is not None:
            said = said + bias[experts[t, k]]
        out[t] += weights[t, k] * said
    for skipped in (residual, residual2):
        if skipped is not None:
            out += skipped
    return out


def finalize_out(rows, weights, slot_of, experts, bias, residual, residual2, out):
    """What `out` becomes."""
    return (finalize(rows, weights, slot_of, experts, bias, residual, residual2),)
