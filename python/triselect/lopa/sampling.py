"""Sampling from the most probable tokens only."""

import torch
from torch import Tensor


def keep_likely(
    logits: Tensor, mask_token: int, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """`logits` ``(..., V)`` in float32, -inf for all but the `top_k` largest, and of these but the
    most probable that together have `top_p`. The mask token has no part; of equal ones the lower
    is kept.
    """
    logits = logits.float()
    token = torch.arange(logits.shape[-1], device=logits.device)
    logits = logits.masked_fill(token == mask_token, -torch.inf)
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    keep = token < (top_k or len(token))
    if top_p is not None:
        p = (ranked / temperature).masked_fill(~keep, -torch.inf).softmax(-1)
        keep = keep & (p.cumsum(-1) - p < top_p)  # the first is always kept
    return logits.scatter(-1, order, ranked.masked_fill(~keep, -torch.inf))
