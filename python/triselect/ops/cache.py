"""What operators that read a cache of tokens accept: its layout, and ranges of its tokens.

A cache is contiguous, ``(B, N, ...)``, or paged, ``(blocks, size, ...)``: then token t of sequence
b is row ``t % size`` of block ``block_table[b, t // size]``; -1 there is a hole without tokens.
"""

from typing import Any

import torch
from torch import Tensor

from triselect.ops import operator

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)


def must_be_tensor(name: str, value: Any, shape: str, device: torch.device | None = None) -> None:
    """Raises unless `value` is a tensor of as many dimensions as `shape` names, on `device`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dim() != shape.count(",") + (not shape.endswith(",)")):
        raise ValueError(f"{name} must be {shape}, got shape {tuple(value.shape)}")
    if device is not None and value.device != device:
        raise ValueError(f"{name} must be on {device} as the others, got {value.device}")


def must_be_integers(name: str, value: Tensor) -> None:
    if value.dtype is not torch.int32 and value.dtype is not torch.int64:
        raise TypeError(f"{name} must be int32 or int64, got {value.dtype}")


def must_have_dtype(name: str, value: Tensor, dtype: torch.dtype) -> None:
    if value.dtype is not dtype:
        raise TypeError(f"{name} must be {dtype} as the others, got {value.dtype}")


def must_have_shape(name: str, value: Tensor, shape: tuple[Any, ...], meaning: str) -> None:
    if value.shape != shape:
        raise ValueError(f"{name} must be {tuple(shape)} ({meaning}), got {tuple(value.shape)}")


def capacity(name: str, cache: Tensor, batch: int, block_table: Tensor | None) -> int:
    """How many tokens of each sequence the cache has room for; raises where it fits no batch."""
    if block_table is None:
        if cache.shape[0] != batch:
            raise ValueError(
                f"{name} must hold {batch} sequences as the queries, got {cache.shape[0]} "
                "(a paged cache needs its block_table)"
            )
        return cache.shape[1]
    must_be_tensor("block_table", block_table, "(batch, pages)", cache.device)
    must_be_integers("block_table", block_table)
    if block_table.shape[0] != batch:
        raise ValueError(
            f"block_table must have {batch} rows as the queries, got {block_table.shape[0]}"
        )
    return block_table.shape[1] * cache.shape[1]


def must_be_per_sequence(name: str, value: Tensor | None, like: Tensor) -> None:
    """Raises unless `value` is None or has one integer for each sequence of `like`."""
    if value is None:
        return
    must_be_tensor(name, value, "(batch,)", like.device)
    must_be_integers(name, value)
    if value.shape[0] != like.shape[0]:
        raise ValueError(f"{name} must have {like.shape[0]} entries, got {value.shape[0]}")


def check_block_table(block_table: Tensor | None, cache: Tensor) -> None:
    """Raises ValueError where a block is not one of the cache's; looks at values."""
    if block_table is not None:
        last = cache.shape[0] - 1
        operator.must_be_in_range("block_table", block_table, -1, last, "-1 for a hole")


def check_range(start: Tensor | None, end: Tensor | None, tokens: int) -> None:
    """Raises ValueError unless 0 <= start <= end <= tokens; looks at values."""
    meaning = "the tokens of the cache"
    for name, bound in (("start", start), ("end", end)):
        if bound is not None:
            operator.must_be_in_range(name, bound, 0, tokens, meaning)
    if start is not None and end is not None and bool((start > end).any()):
        b = int((start > end).nonzero()[0])
        raise ValueError(
            f"start must not be after end, got {int(start[b])} and {int(end[b])} in sequence {b}"
        )
