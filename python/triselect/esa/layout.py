"""The heads of one attention layer, and its queries and keys as rows to calibrate on."""

from collections.abc import Iterable, Iterator
from itertools import chain, zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

Chunks = Tensor | Iterable[Tensor]
TOKENS_AT_ONCE = 8192  # in float64: 64 MiB for 1024 numbers each


class Layout(NamedTuple):
    """H query heads share G key heads of D numbers; query head h reads key head h // (H / G)."""

    heads: int
    groups: int
    head_dim: int

    @property
    def width(self) -> int:
        """Numbers of a folded query, and of a token's keys."""
        return self.groups * self.head_dim


def rows(queries: Chunks, keys: Chunks) -> tuple[Layout, Iterator[tuple[Tensor, Tensor]]]:
    """The layout, and folded queries and keys ``(T, G * D)`` float64, a chunk of each at a time.

    In turn, so that two views of one generator (`itertools.tee`) hold one chunk and no more. The
    shorter of the two ends in empty chunks.
    """
    pairs = zip_longest(_chunks("queries", queries), _chunks("keys", keys))
    first = next(pairs, (None, None))
    layout = layout_of(*first)

    def folded(name: str, x: Tensor | None, heads: int) -> Tensor:
        if x is None:
            return torch.empty(0, layout.width, dtype=torch.float64)
        if x.shape[1:] != (heads, layout.head_dim):
            raise ValueError(
                f"{name} must be (tokens, {heads}, {layout.head_dim}) in every chunk, "
                f"got {tuple(x.shape)}"
            )
        # Of the devices, not all have float64.
        return fold(x if x.is_cuda else x.cpu(), layout.groups)

    return layout, (
        (folded("queries", q, layout.heads), folded("keys", k, layout.groups))
        for q, k in chain([first], pairs)
    )


def layout_of(queries: Tensor | None, keys: Tensor | None) -> Layout:
    for name, value in (("queries", queries), ("keys", keys)):
        if value is None:
            raise ValueError(f"{name} must have at least one chunk, got none")
    assert queries is not None
    assert keys is not None
    (heads, query_dim), (groups, key_dim) = queries.shape[1:], keys.shape[1:]
    if query_dim != key_dim or not key_dim:
        raise ValueError(
            "queries and keys must have heads of one size of at least 1, "
            f"got {tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    if not groups or heads % groups or not heads:
        raise ValueError(
            f"the {groups} heads of keys {tuple(keys.shape)} must divide the {heads} of queries "
            f"{tuple(queries.shape)}"
        )
    return Layout(heads, groups, key_dim)


def must_be_heads(name: str, value: Tensor) -> None:
    """Raises unless `value` is a finite ``(tokens, heads, dim)``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be tensors, got {type(value).__name__}")
    if value.dim() != 3:
        raise ValueError(f"{name} must be (tokens, heads, dim), got shape {tuple(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")
    if not value.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def fold(x: Tensor, groups: int) -> Tensor:
    """``(T, H, D)`` to ``(T, G * D)`` float64: queries added up over the heads that share a key."""
    return x.double().unflatten(1, (groups, -1)).sum(2).flatten(1)


def _chunks(name: str, chunks: Chunks) -> Iterator[Tensor]:
    for chunk in [chunks] if isinstance(chunks, Tensor) else chunks:
        must_be_heads(name, chunk)
        yield from chunk.detach().split(TOKENS_AT_ONCE)
