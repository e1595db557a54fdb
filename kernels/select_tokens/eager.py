"""Selection of tokens in plain PyTorch: any device, no synchronisation.

The k-th largest key is the threshold; all above it are taken, and of those equal to it the first.
torch.topk gives the threshold alone: which of equal keys it takes is its own business.
"""

import torch
from torch import Tensor

NO_TOKEN = -(2**31)  # below the keys of all scores, also of -inf


def select_tokens(
    scores: Tensor, k: int, proximity: int, start: Tensor | None, end: Tensor | None
) -> Tensor:
    """``index (B, k)`` int32; `start` and `end` are None or ``(B,)``."""
    rows, tokens = scores.shape
    rank = torch.arange(1, k + 1, device=scores.device, dtype=torch.int32).repeat(rows, 1)
    if not tokens:
        return torch.full_like(rank, -1)
    position = torch.arange(tokens, device=scores.device)
    inside = torch.ones_like(scores, dtype=torch.bool)
    if start is not None:
        inside &= position >= start[:, None]
    if end is not None:
        inside &= position < end[:, None]
    keys = ordered(scores).masked_fill(~inside, NO_TOKEN)
    if proximity:
        keys = sliding_maximum(keys, min(proximity, tokens)).masked_fill(~inside, NO_TOKEN)

    threshold = keys.topk(min(k, tokens)).values[:, -1:]
    above, tied = keys > threshold, (keys == threshold) & inside
    left = k - above.sum(1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(1) <= left))
    # The n-th token chosen is the first with n chosen up to it.
    index = torch.searchsorted(chosen.cumsum(1, dtype=torch.int32), rank, out_int32=True)
    return index.masked_fill(index == tokens, -1)


def ordered(scores: Tensor) -> Tensor:
    """int32 in the order of the scores: NaN as -inf, -0 as +0."""
    scores = scores.float()
    scores = scores.masked_fill(scores.isnan(), -torch.inf) + 0.0
    bits = scores.view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def sliding_maximum(keys: Tensor, reach: int) -> Tensor:
    """Of each and all that are up to `reach` away from it, by maxima of windows twice as wide."""
    window = torch.nn.functional.pad(keys, (reach, reach), value=NO_TOKEN)
    width = 1
    while width < 2 * reach + 1:
        step = min(width, 2 * reach + 1 - width)
        window = torch.maximum(window[:, :-step], window[:, step:])
        width += step
    return window
