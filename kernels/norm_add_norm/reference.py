"""Norm, addition and norm in NumPy: what the operator means (arXiv 2504.07866, sandwich norm).

N(v, w) = w · v / rms(v),   rms(v) = sqrt(mean(v²) + eps)

"branch":  r = residual + N(y, post_weight)         "sum":  r = N(residual + y, post_weight)
z = N(r, next_weight)
"""

import numpy as np


def norm_add_norm(y, residual, post_weight, next_weight, eps, placement):
    """``residual (..., H)`` and ``normed (..., H)``: r and z."""
    y, residual = y.astype(np.float64), residual.astype(np.float64)
    if placement == "branch":
        r = residual + norm(y, post_weight, eps)
    else:
        r = norm(residual + y, post_weight, eps)
    return r, norm(r, next_weight, eps)


def norm(v, weight, eps):
    with np.errstate(invalid="ignore"):  # what is not finite, or nothing but zeros where eps is 0
        return weight * (v / np.sqrt((v**2).mean(-1, keepdims=True) + eps))
