"""Sums over any number of rows: all that the closed form and PCA need to know of them."""

import torch
from torch import Tensor


class Moments:
    """Count, sum and sum of outer products, in float64, whatever the number of rows."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Rows ``(T, width)`` float64, on any device."""
        self.count += len(rows)
        self._sum += rows.sum(0).cpu()
        self._products += (rows.T @ rows).cpu()

    @property
    def mean(self) -> Tensor:
        return self._sum / self.count

    @property
    def second(self) -> Tensor:
        """Second moment E[x xᵀ]."""
        return self._products / self.count

    @property
    def covariance(self) -> Tensor:
        return self.second - torch.outer(self.mean, self.mean)
