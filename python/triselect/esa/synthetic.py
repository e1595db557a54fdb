"""Queries and keys of known structure, to test and to compare selection on.

Each function returns queries ``(tokens, H, D)`` and keys ``(tokens, G, D)``, float32. Folded
queries are of the kind that the function's name says; the heads that share a key differ by noise
that cancels out in their sum.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from triselect.esa.layout import Layout


class QueriesAndKeys(NamedTuple):
    """``(tokens, H, D)`` and ``(tokens, G, D)``."""

    queries: Tensor
    keys: Tensor


def isotropic(tokens: int, layout: Layout, seed: int) -> QueriesAndKeys:
    """Noise: no direction counts more than another, so nothing can be left out."""
    draw = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(tokens, layout.width, generator=draw) for _ in range(2))
    return _heads(q, k, layout, draw)


def misaligned(tokens: int, layout: Layout, seed: int) -> QueriesAndKeys:
    """Power-law spectra on the same axes, but in different orders: where keys vary most, queries
    may have next to nothing. What PCA of the keys keeps is then of little use."""
    draw = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(tokens, layout.width, generator=draw) for _ in range(2))
    axes = _rotation(layout.width, draw)
    q, k = ((x * _spectrum(layout.width, draw)) @ axes for x in (q, k))
    return _heads(q, k, layout, draw)


def outlier_channels(tokens: int, layout: Layout, seed: int) -> QueriesAndKeys:
    """One channel in 16 of the keys is large and far from zero, as in language models; queries
    hardly look at it. The rest has power-law spectra on different axes."""
    draw = torch.Generator().manual_seed(seed)
    q, k = (
        (torch.randn(tokens, layout.width, generator=draw) * _spectrum(layout.width, draw))
        @ _rotation(layout.width, draw)
        for _ in range(2)
    )
    channels = torch.randperm(layout.width, generator=draw)[: -(-layout.width // 16)]
    k[:, channels] = 20 + 5 * torch.randn(tokens, len(channels), generator=draw)
    q[:, channels] *= 0.05
    return _heads(q, k, layout, draw)


def sinks(tokens: int, layout: Layout, seed: int) -> QueriesAndKeys:
    """All queries share a direction, along which one token in 256 has a very large key."""
    draw = torch.Generator().manual_seed(seed)
    q, k = misaligned(tokens, layout._replace(heads=layout.groups), seed + 1)
    q, k = q.flatten(1), k.flatten(1)
    direction = torch.nn.functional.normalize(torch.randn(layout.width, generator=draw), dim=0)
    q = q + 2 * direction
    k[::256] += 20 * direction
    return _heads(q, k, layout, draw)


def needles(tokens: int, layout: Layout, seed: int) -> QueriesAndKeys:
    """Keys in 64 clusters; every query looks for the tokens of one of them."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(64, layout.width, generator=draw) * _spectrum(layout.width, draw)
    centres = centres @ _rotation(layout.width, draw)
    q, k = (
        centres[torch.randint(64, (tokens,), generator=draw)]
        + 0.1 * torch.randn(tokens, layout.width, generator=draw)
        for _ in range(2)
    )
    return _heads(q, k, layout, draw)


DISTRIBUTIONS: dict[str, Callable[[int, Layout, int], QueriesAndKeys]] = {
    function.__name__: function
    for function in (isotropic, misaligned, outlier_channels, sinks, needles)
}


def _spectrum(width: int, draw: torch.Generator) -> Tensor:
    """Standard deviations 1, 1/2, 1/3, ... in random order."""
    return 1.0 / (1 + torch.randperm(width, generator=draw))


def _rotation(width: int, draw: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=draw)).Q


def _heads(q: Tensor, k: Tensor, layout: Layout, draw: torch.Generator) -> QueriesAndKeys:
    """Gives the heads of a group their queries, scaled so that softmax neither levels nor spikes:
    q · k / sqrt(D) of a head has a standard deviation of about 3 over the keys."""
    shared = layout.heads // layout.groups
    q, k = (x.unflatten(1, (layout.groups, layout.head_dim)) for x in (q, k))
    scores = torch.einsum("tgd,ngd->tgn", q[:256], k[:2048]) * layout.head_dim**-0.5
    q = q * (3 / scores.std(2).mean())
    noise = torch.randn(len(q), layout.groups, shared, layout.head_dim, generator=draw)
    noise = 0.3 * q.std() * (noise - noise.mean(2, keepdim=True))
    return QueriesAndKeys((q[:, :, None] + noise).flatten(1, 2), k)
