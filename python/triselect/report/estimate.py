"""`Estimate`: a mean and how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True)
class Estimate:
    """A mean over independent draws and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return cls(mean(values), error)

    @classmethod
    def ratio(cls, over: Sequence[float], under: Sequence[float]) -> "Estimate":
        """Of the sums of two numbers for each draw, by the delta method."""
        whole, each = sum(over) / sum(under), mean(under)
        rest = [(a - whole * b) / each for a, b in zip(over, under, strict=True)]
        return cls(whole, cls.of(rest).error)
