"""Two attentions over disjoint tokens as one, in NumPy: what the operator means.

    lse = log(exp(lse_a) + exp(lse_b)),   out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b

An attention over nothing has lse = -inf, and whatever it has for `out` counts for nothing.
"""

import numpy as np


def merge(out_a, lse_a, out_b, lse_b):
    """``out (..., D)`` and ``lse (...)``."""
    lse = np.logaddexp(lse_a.astype(np.float64), lse_b.astype(np.float64))
    out = np.zeros(out_a.shape)
    for part, of_part in ((out_a, lse_a), (out_b, lse_b)):
        nothing = of_part == -np.inf
        weight = np.exp(np.where(nothing, 0, of_part) - np.where(nothing, 0, lse))[..., None]
        out += np.where(nothing[..., None], 0, part * weight)
    return out, lse
