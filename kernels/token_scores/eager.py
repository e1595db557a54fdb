"""ESA's scores of cached tokens in plain PyTorch, a tile of tokens at a time: any device.

Same names as `reference.py`. Two passes over the keys, or one where no chunk has a second query:
the dot products are computed twice rather than kept.
"""

import torch
from torch import Tensor
from triselect.kernels.shared.fold import fold
from triselect.kernels.shared.pages import rows

PRODUCTS = 2**21  # kept at a time


def token_scores(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor | None,
    start: Tensor | None,
    end: Tensor | None,
    num_queries: Tensor | None,
    block_table: Tensor | None,
) -> Tensor:
    """``(B, N) float32`` of q ``(B, C, E)`` or ``(B, C, H, D)``; -inf outside start .. end - 1."""
    batch, chunk = q.shape[:2]
    if q.dim() == 4:
        q = fold(q, k.shape[2]).flatten(2)
    q = q.float()
    tokens = k.shape[1] * (1 if block_table is None else block_table.shape[1])
    number = q.new_full((batch,), chunk) if num_queries is None else num_queries
    real = torch.arange(chunk, device=q.device) < number[:, None]

    def products(first: int, last: int) -> Tensor:
        """f of every query and a tile of tokens; -inf where there is no query or no token."""
        m = torch.arange(first, last, device=q.device).expand(batch, -1)
        if block_table is None:
            keys, there = k[:, first:last], torch.ones_like(m, dtype=torch.bool)
        else:
            keys, there = rows(k, m, block_table)
        f = torch.einsum("bce,bme->bcm", q, keys.float().flatten(2))
        if k_scale is not None:
            scale = (
                k_scale[:, first:last] if block_table is None else rows(k_scale, m, block_table)[0]
            )
            f *= scale[:, None]
        there = there & (m >= 0 if start is None else m >= start[:, None])
        there &= m < tokens if end is None else m < end[:, None]
        return f.masked_fill_(~(real[:, :, None] & there[:, None]) | f.isnan(), -torch.inf)

    tile = max(1, PRODUCTS // max(1, batch * chunk))
    tiles = [(first, min(first + tile, tokens)) for first in range(0, tokens, tile)]
    best = q.new_zeros(batch, chunk, 1)
    if chunk > 1 and tokens:
        best = torch.stack([products(*t).amax(2, keepdim=True) for t in tiles]).amax(0)
    scores = q.new_full((batch, tokens), -torch.inf)
    if not chunk:
        return scores
    for first, last in tiles:
        f = products(first, last)
        if chunk > 1:
            alone = (number == 1)[:, None, None]
            over = torch.where(f == best, 0.0, f - best)
            f = torch.where(alone | (f == -torch.inf), f, over)
        torch.amax(f, 1, out=scores[:, first:last])
    return scores
