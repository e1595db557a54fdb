"""Attention over some of the cached tokens in plain PyTorch, a tile of tokens at a time.

Same names as `reference.py`. The softmax is online: a tile rescales what those before it added up.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from triselect.kernels.shared.pages import rows

Tile = tuple[Tensor, Tensor, Tensor]  # k, v (B, n, G, D), and who attends to them (B, C or 1, n)
PRODUCTS = 2**22  # of queries and keys, at a time


def gather_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    num_initial: int,
    end: Tensor | None,
    block_table: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """``out (B, C, H, D)`` of q's dtype and ``lse (B, C, H) float32`` over far tokens."""
    return attention([(q, far(q, k, v, index, num_initial, end, block_table))], scale)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    block_table: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """``out (B, C, H, D)`` of q's dtype and ``lse (B, C, H) float32`` over a window of tokens."""
    return attention([(q, window(q, k, v, start, end, cos, sin, block_table))], scale)


def selected_attention(
    q_far: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    num_initial: int,
    start: Tensor | None,
    end: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    block_table: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """``out (B, C, H, D)`` of q's dtype and ``lse (B, C, H) float32`` over both."""
    far_end = index.new_zeros(len(q)) if start is None else start  # what is behind is the window's
    parts = [
        (q_far, far(q_far, k, v, index, num_initial, far_end, block_table)),
        (q, window(q, k, v, start, end, cos, sin, block_table)),
    ]
    return attention(parts, scale)


def far(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    num_initial: int,
    end: Tensor | None,
    block_table: Tensor | None,
) -> Iterator[Tile]:
    """The initial and the listed tokens; one that is listed twice, or is initial, counts once."""
    initial = torch.arange(num_initial, device=q.device).expand(len(q), -1)
    before = torch.nn.functional.pad(index, (1, 0), value=-1)[:, :-1]
    counts = (index > before) & (index >= num_initial)
    counts = torch.cat((torch.ones_like(initial, dtype=torch.bool), counts), 1)
    tokens = torch.cat((initial, index.long()), 1)
    if end is not None:
        counts &= tokens < end[:, None]
    step = tile(q)
    for i in range(0, tokens.shape[1], step):
        some = tokens[:, i : i + step]
        (keys, there), (values, _) = (rows(x, some, block_table) for x in (k, v))
        yield keys, values, (counts[:, i : i + step] & there)[:, None]


def window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    block_table: Tensor | None,
) -> Iterator[Tile]:
    """The tokens of the window, each for the queries at its place and behind it."""
    batch, chunk = q.shape[:2]
    length = k.shape[1] * (1 if block_table is None else block_table.shape[1])
    begin = torch.zeros(batch, dtype=torch.long, device=q.device) if start is None else start.long()
    stop = torch.full_like(begin, length) if end is None else end.long()
    place = stop[:, None] - chunk + torch.arange(chunk, device=q.device)
    first, last = 0, length
    if q.device.type == "cpu" and batch:  # where looking at them waits for nothing
        first, last = int(begin.min()), int(stop.max())
    step = tile(q)
    for i in range(first, last, step):
        m = torch.arange(i, min(i + step, last), device=q.device).expand(batch, -1)
        if block_table is None:
            keys, values = (x[:, i : min(i + step, last)] for x in (k, v))
            there = torch.ones_like(m, dtype=torch.bool)
        else:
            (keys, there), (values, _) = (rows(x, m, block_table) for x in (k, v))
        turn = m - begin[:, None]
        there = there & (turn >= 0)
        if cos is not None and sin is not None:
            there &= turn < len(cos)
            turn = turn.where(there, 0)
            keys = rotate(keys, cos[turn], sin[turn])
        yield keys, values, there[:, None] & (m[:, None] <= place[:, :, None])


def tile(q: Tensor) -> int:
    return max(1, PRODUCTS // max(1, q.numel() // q.shape[-1]))


def rotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Keys ``(B, n, G, D)`` turned by angles ``(B, n, D / 2)``: rotate-half, in float32."""
    x, y = keys.float().chunk(2, -1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.cat((x * cos - y * sin, y * cos + x * sin), -1)


def attention(parts: list[tuple[Tensor, Iterator[Tile]]], scale: float) -> tuple[Tensor, Tensor]:
    """Queries with their tiles; all parts share one softmax."""
    like = parts[0][0]
    batch, chunk, heads, _ = like.shape
    best = like.new_full((batch, chunk, heads), -torch.inf, dtype=torch.float32)
    total = torch.zeros_like(best)
    out = like.new_zeros(like.shape, dtype=torch.float32)
    for q, tiles in parts:
        for k, v, attends in tiles:
            groups = k.shape[2]
            someone = attends.any(1)[:, :, None, None]  # what no one attends to may hold anything
            k, v = (x.float().masked_fill(~someone, 0) for x in (k, v))
            grouped = q.float().unflatten(2, (groups, heads // groups))
            s = torch.einsum("bcgrd,bngd->bcgrn", grouped, k).flatten(2, 3) * scale
            s = s.masked_fill(~attends[:, :, None], -torch.inf)
            new = torch.maximum(best, s.amax(-1)) if s.shape[-1] else best
            base = new.masked_fill(new == -torch.inf, 0)
            p = (s - base[..., None]).exp()
            keep = (best - base).exp()
            total = total * keep + p.sum(-1)
            mixed = mix(p.unflatten(2, (groups, -1)), v, attends)
            out = out * keep[..., None] + mixed.flatten(2, 3)
            best = new
    lse = best + total.log()
    out = torch.where((total == 0)[..., None], 0, out / total[..., None])
    return out.to(like.dtype), lse


def mix(p: Tensor, v: Tensor, attends: Tensor) -> Tensor:
    """Values ``(B, n, G, D)`` weighed by p ``(B, C, G, R, n)``.

    Where queries attend to different tokens, a weight of zero does not do: 0 * NaN is NaN. What is
    not finite is taken out of the product, and put in again for those who attend to it.
    """
    if attends.shape[1] == 1:
        return torch.einsum("bcgrn,bngd->bcgrd", p, v)
    out = torch.einsum("bcgrn,bngd->bcgrd", p, v.where(v.isfinite(), 0))
    for what, is_it in ((torch.inf, v == torch.inf), (-torch.inf, v == -torch.inf)):
        out = out + torch.where(met(attends, is_it), what, 0.0)
    return out.masked_fill(met(attends, v.isnan()), torch.nan)


def met(attends: Tensor, values: Tensor) -> Tensor:
    """Whether a query attends to any of these, ``(B, C, G, 1, D)``."""
    return torch.einsum("bcn,bngd->bcgd", attends.float(), values.float())[:, :, :, None] > 0
