"""Queries, keys and the scores that they mean, spelt out."""

import torch
from torch import Tensor

from triselect.esa import Compressor, synthetic
from triselect.esa.layout import Layout, fold

SMALL = Layout(6, 2, 5)
EVEN = Layout(8, 2, 32)


def scores(queries: Tensor, keys: Tensor) -> Tensor:
    """``f (T, N)`` of equation 3 in float64: the sum over all heads, head by head."""
    shared = queries.shape[1] // keys.shape[1]
    total = torch.zeros(len(queries), len(keys), dtype=torch.float64)
    for head in range(queries.shape[1]):
        total += queries[:, head].double() @ keys[:, head // shared].double().T
    return total


def short_scores(compressor: Compressor, queries: Tensor, keys: Tensor) -> Tensor:
    """The same of compressed queries and keys, in float64."""
    q = fold(queries, compressor.groups) @ compressor.query.double().T
    k = fold(keys, compressor.groups) @ compressor.key.double().T
    if compressor.query_bias is not None:
        q = q + compressor.query_bias.double()
    if compressor.key_bias is not None:
        k = k + compressor.key_bias.double()
    return q @ k.T


def error(compressor: Compressor, queries: Tensor, keys: Tensor) -> float:
    """Sum of squares over all pairs: equation 7."""
    wrong = scores(queries, keys) - short_scores(compressor, queries, keys)
    return wrong.square().sum().item()


def noise(tokens: int, layout: Layout = SMALL, seed: int = 0) -> synthetic.QueriesAndKeys:
    """Plain noise on axes of different lengths, and every head on its own."""
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(tokens, layout.heads, layout.head_dim, generator=draw)
    k = torch.randn(tokens, layout.groups, layout.head_dim, generator=draw)
    stretch = torch.rand(2, layout.head_dim, generator=draw) + 0.1
    return synthetic.QueriesAndKeys(q * stretch[0], k * stretch[1])


def integers(tokens: int, layout: Layout = SMALL, seed: int = 0) -> synthetic.QueriesAndKeys:
    """Small integers: sums of their products are exact in any order."""
    draw = torch.Generator().manual_seed(seed)
    return synthetic.QueriesAndKeys(
        *(
            torch.randint(-4, 5, (tokens, heads, layout.head_dim), generator=draw).float()
            for heads in (layout.heads, layout.groups)
        )
    )
