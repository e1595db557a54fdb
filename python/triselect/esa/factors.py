"""Pairs of linear maps A, B with (A q) · (B k) ≈ q · k, in float64, by linear algebra."""

from typing import NamedTuple

import torch
from torch import Tensor

# Eigenvalues so much smaller than the largest are rounding errors of the sums that they are of.
RELATIVE_CUT_OFF = 1e-12


class Factors(NamedTuple):
    """``(n, n)`` each, the best rows first: the first r of both are the pair of rank r."""

    query: Tensor
    key: Tensor


def closed_form(query_moment: Tensor, key_moment: Tensor) -> Factors:
    """What minimises E (q · k − A q · B k)² over all maps of each rank, q and k independent.

    With P = Σq^½ and R = Σk^½, the error of a pair is the squared Frobenius norm of
    P R − P Aᵀ B R, so A P and B R must multiply to the truncated SVD U S Vᵀ of P R:
    A = S^½ Uᵀ P⁻¹ and B = S^½ Vᵀ R⁻¹. Directions that no row had are mapped to zero, and where the
    rank is less than n the rows beyond it are zero.
    """
    query_root, query_inverse = _roots(query_moment)
    key_root, key_inverse = _roots(key_moment)
    u, s, vt = torch.linalg.svd(query_root @ key_root)
    scale = torch.where(s > RELATIVE_CUT_OFF * s[0], s, 0).sqrt()[:, None]
    return Factors(scale * (u.T @ query_inverse), scale * (vt @ key_inverse))


def pca(key_covariance: Tensor) -> Factors:
    """The principal axes of the keys, for queries and keys alike."""
    axes = torch.linalg.eigh(key_covariance).eigenvectors.flip(1).T
    return Factors(axes, axes)


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """M^½ and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(moment)
    kept = values > RELATIVE_CUT_OFF * values[-1]
    root = torch.where(kept, values, 0).sqrt()
    inverse = torch.where(kept, 1 / torch.where(kept, root, 1), 0)
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T
