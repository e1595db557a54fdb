"""Rows of a cache by token, whether it is contiguous or paged (see ops/cache.py)."""

import torch
from torch import Tensor


def rows(cache: Tensor, tokens: Tensor, block_table: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows ``(B, n, ...)`` of tokens ``(B, n)``, and which of these exist ``(B, n)``.

    A token that is out of range or in a hole does not exist, and has some other token's row.
    """
    if 0 in cache.shape[:2]:
        return cache.new_zeros((*tokens.shape, *cache.shape[2:])), torch.zeros_like(tokens).bool()
    if block_table is None:
        there = (tokens >= 0) & (tokens < cache.shape[1])
        batch = torch.arange(len(tokens), device=cache.device)[:, None]
        return cache[batch, tokens.where(there, 0)], there
    blocks, size = cache.shape[:2]
    page = tokens.div(size, rounding_mode="floor")
    there = (page >= 0) & (page < block_table.shape[1])
    block = block_table.long().gather(1, page.where(there, 0))
    there &= (block >= 0) & (block < blocks)
    return cache[block.where(there, 0), tokens % size], there
