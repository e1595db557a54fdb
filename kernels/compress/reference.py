"""Compression of queries or keys in NumPy: what the operator means (arXiv 2502.14477, equation 5).

    y = W · concat over groups g of (sum over the heads h of g of x_h) + b

The sum over the heads of a group is exact for what y is used for, dot products with keys that these
heads share. In 8 bits: y / scale rounded to nearest, ties to even, scale = max |y| / limit. What is
not finite has no such form: its scale is NaN.
"""

import numpy as np


def compress(x, weight, bias, slots, values, scale):
    """What `values` ``(..., E)`` and `scale` ``(...)`` or None become with x ``(..., H, D)``."""
    dim = x.shape[-1]
    groups = weight.shape[1] // dim
    tokens = int(np.prod(x.shape[:-2]))
    x = x.astype(np.float64).reshape(tokens, groups, x.shape[-2] // groups, dim).sum(2)
    y = x.reshape(tokens, groups * dim) @ weight.astype(np.float64).T
    if bias is not None:
        y = y + bias
    rows = np.arange(len(y)) if slots is None else slots.reshape(-1)
    new = values.reshape(-1, values.shape[-1]).copy()
    if scale is None:
        new[rows[rows >= 0]] = y[rows >= 0]
        return new.reshape(values.shape), None
    limit = 127 if values.dtype == np.int8 else 448
    with np.errstate(invalid="ignore", divide="ignore"):
        s = np.abs(y).max(1) / limit
        s = np.where(np.isfinite(s), s, np.nan).astype(np.float32)
        # A scale so small that it has few digits left may be too small.
        quantised = np.where((s > 0)[:, None], y / s[:, None], 0).clip(-limit, limit)
    if values.dtype == np.int8:
        quantised = np.rint(quantised)
    scales = scale.reshape(-1).copy()
    new[rows[rows >= 0]] = quantised[rows >= 0]
    scales[rows[rows >= 0]] = s[rows >= 0]
    return new.reshape(values.shape), scales.reshape(scale.shape)
