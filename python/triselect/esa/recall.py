"""How many of the tokens that exact scores select are selected by compressed ones."""

from typing import NamedTuple

import torch
from torch import Tensor

from triselect.esa.factors import Factors
from triselect.ops import select_tokens

PRODUCTS = 2**21  # of queries and keys, kept at a time
SIZES_ON_CURVE = 64


class Curve(NamedTuple):
    """Recall by compressed size: ``recall[i]`` at ``dim[i]``, of the `top_k` best of `keys` tokens
    for `queries` queries in chunks of `chunk`."""

    dim: tuple[int, ...]
    recall: tuple[float, ...]
    top_k: int
    chunk: int
    queries: int
    keys: int

    def smallest(self, target: float) -> int:
        """The smallest size from which on the recall stays at the target or above it."""
        for i in range(len(self.dim)):
            if min(self.recall[i:]) >= target:
                return self.dim[i]
        raise ValueError(
            f"recall {target} is reached at no size on the {self.keys} keys held out, the best is "
            f"{max(self.recall):.4f}: calibrate on more tokens"
        )


def curve(factors: Factors, queries: Tensor, keys: Tensor, top_k: int, chunk: int) -> Curve:
    """Of folded queries ``(T, n)`` and keys ``(N, n)``, at up to 64 sizes, n the last of them."""
    width = queries.shape[1]
    step = -(-width // SIZES_ON_CURVE)
    sizes = [*range(step, width, step), width]
    q, k = queries @ factors.query.T, keys @ factors.key.T
    hits = [0] * len(sizes)
    chunks = 0
    for part in pieces(len(q), len(k), chunk):
        exact = chunk_scores(queries[part] @ keys.T, chunk)
        worst = kth_best(exact, top_k)
        f = torch.zeros(len(q[part]), len(k), dtype=q.dtype)
        for i, (first, last) in enumerate(zip([0, *sizes], sizes, strict=False)):
            # The scores at a size are those at the one before, and the products of a few rows more.
            f += q[part, first:last] @ k[:, first:last].T
            index = select_tokens(chunk_scores(f, chunk).float(), top_k)
            hits[i] += found(exact, worst, index)
        chunks += len(exact)
    recall = tuple(count / (chunks * top_k) for count in hits)
    return Curve(tuple(sizes), recall, top_k, chunk, len(q), len(k))


def chunk_scores(f: Tensor, chunk: int) -> Tensor:
    """Equation 4 for every `chunk` rows of ``f (T, N)``: max over the queries of f − its row's max.

    A chunk of one query keeps f, which is in the same order.
    """
    if chunk == 1:
        return f
    f = f - f.amax(1, keepdim=True)
    return torch.stack([queries.amax(0) for queries in f.split(chunk)])


def kth_best(scores: Tensor, k: int) -> Tensor:
    """``(R, 1)`` of ``scores (R, N)``."""
    return scores.topk(k).values[:, -1:]


def found(exact: Tensor, worst: Tensor, index: Tensor) -> int:
    """How many of ``index (R, k)`` have a score in ``exact (R, N)`` that is not below `worst`.

    So of equal scores any will do.
    """
    return int((exact.gather(1, index.long()) >= worst).sum())


def pieces(queries: int, keys: int, chunk: int) -> list[slice]:
    """Whole chunks of queries whose products with the keys may be kept at a time."""
    size = max(1, PRODUCTS // (keys * chunk)) * chunk
    return [slice(first, first + size) for first in range(0, queries, size)]
