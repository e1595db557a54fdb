"""Queries, keys and values of random texts, and reading them."""

import torch

from triselect.esa import attend, calibrate


def text(tokens, heads=4, groups=2, dim=8, batch=1, seed=0):
    """Queries, keys and values ``(B, T, heads, D)``."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads,), (groups,), (groups,))
    return [torch.randn(batch, tokens, *n, dim, generator=generator) for n in shapes]


def read(q, k, v, cache, chunks, layer=0, **options):
    """The text in parts of so many tokens."""
    parts = [x.split(list(chunks), 1) for x in (q, k, v)]
    return torch.cat(
        [attend(*part, cache, layer, **options) for part in zip(*parts, strict=True)], 1
    )


def cut(total, size):
    return [min(size, total - i) for i in range(0, total, size)]


def compressors(q, k, dim, **options):
    return [calibrate(q[0], k[0], dim=dim, **options)]
