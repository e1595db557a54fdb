"""A round of LoPA up to the model in plain PyTorch: any device, no synchronisation.

Positions are ranked by stable sorts: which of equal ones torch.topk takes is its own business.
"""

import torch
from torch import Tensor
from triselect.kernels.spawn.reference import FAR


def spawn(
    tokens: Tensor,
    token: Tensor,
    prob: Tensor,
    score: Tensor,
    added: Tensor,
    start: Tensor,
    thresholds: Tensor | None,
    block_length: int,
    window: int,
    num_lookaheads: int,
    mask_token: int,
    eos_token: int,
    threshold: float,
    factor: float,
    add_at: int,
    activate_at: int,
    attention: str,
    shift: bool,
) -> tuple[Tensor, ...]:
    """Branches of sequences ``(B, G)``; added and start are ``(B,)``."""
    batch, length = tokens.shape
    blocks = length // block_length
    place = torch.arange(length, device=tokens.device, dtype=torch.int32)
    start = start.clamp(0, length)
    inside = (place >= start[:, None]) & (place < start[:, None] + window)
    score = score.masked_fill(score.isnan(), -torch.inf)

    def still_open(x: Tensor, added: Tensor) -> Tensor:
        before_end = (x == eos_token).cumsum(-1) == 0
        reached = place < (added * block_length)[:, None]
        return (x == mask_token) & before_end & reached & inside

    def per_block(x: Tensor) -> Tensor:
        return x.view(batch, blocks, block_length)

    # The anchor.
    before = still_open(tokens, added)
    known = per_block(before & (token >= 0))
    p = per_block(prob)
    bound = threshold if thresholds is None else thresholds[:, None, None]
    taken = known & accepted(p, known, bound, factor)
    filled = block_length - per_block(before).sum(-1)
    full = torch.cat((filled.new_full((batch, 1), block_length + 1), filled), 1)[:, :blocks]
    full[:, :1] = block_length + 1  # the first block waits for none
    full = (full >= activate_at)[..., None]
    fallback = best_of(per_block(score), known)
    taken = taken | (fallback & full & ~taken.any(-1, keepdim=True))
    anchor = token.where(taken.view(batch, length), tokens)
    after = still_open(anchor, added)

    # Lookaheads.
    key = score.masked_fill(~(after & (token >= 0)), -torch.inf)
    ranked = key.sort(dim=-1, descending=True, stable=True)
    k = min(num_lookaheads, length)
    found = ranked.indices[:, :k].int().masked_fill(ranked.values[:, :k] == -torch.inf, -1)
    extra = tokens.new_full((batch, num_lookaheads + 1), -1)
    extra[:, 1 : k + 1] = found

    # The pipeline, and what is frozen.
    left = per_block(after).sum(-1)
    of_last = torch.arange(blocks, device=tokens.device) == (added - 1)[:, None]
    in_last = block_length - (left * of_last).sum(-1)
    cut = start + window
    waits = after.any(-1) & (cut < length)
    room = (cut - block_length * waits.int()).clamp_max(length)
    ended = (anchor == eos_token).any(-1)
    more = ((added + 1) * block_length <= room) & ~ended & (in_last >= add_at)
    added = added + more.int()
    alone = still_open(anchor, added).sum(-1) == 1
    alone = alone & (added * block_length < length) & ~ended
    extra = extra.masked_fill(alone[:, None], -1)
    start_next = start
    if attention != "bidirectional":
        unfinished = per_block(still_open(anchor, added)).any(-1)
        number = torch.arange(blocks, device=tokens.device, dtype=torch.int32)
        number = number.where(unfinished, added[:, None])
        first = torch.cat((number, added[:, None]), 1).amin(1) * block_length
        start_next = torch.maximum(start, first)
    first = start_next[:, None] // block_length

    # The window of every branch.
    here = start[:, None] + torch.arange(window, device=tokens.device, dtype=torch.int32)
    real = here < length
    there = here.clamp_max(length - 1).long()
    own = (here[:, None] == extra[..., None]) & (extra[..., None] >= 0)
    extra_token = token.gather(1, extra.clamp_min(0).long())
    branch = extra_token[..., None].where(own, anchor.gather(1, there)[:, None])
    branch = branch.masked_fill(~real[:, None], mask_token)
    before_end = ((anchor == eos_token).cumsum(-1) == 0).gather(1, there)[:, None]
    ends = (extra_token == eos_token) & (extra >= 0)
    before_end = before_end & ~(ends[..., None] & (here[:, None] >= extra[..., None]))
    reached = real & (here < (added * block_length)[:, None])
    live = extra >= 0
    live[:, 0] = True
    is_open = (branch == mask_token) & before_end & reached[:, None] & live[..., None]
    asked = torch.zeros_like(is_open)
    asked[..., : window - shift] = is_open[..., int(shift) :]

    at = here // block_length
    if attention == "bidirectional":
        level = torch.zeros_like(at)
    else:
        level = at.where(at < first, first) if attention == "full" else at
        level = (level + 1).masked_fill(at >= added[:, None], FAR)
    return branch, is_open, asked, extra, level.masked_fill(~real, FAR), added, start_next


def accepted(p: Tensor, known: Tensor, threshold: float | Tensor, factor: float) -> Tensor:
    """Which of the known positions of each block are sure enough."""
    if factor == 0:
        return p > threshold
    key = p.masked_fill(~known | p.isnan(), -torch.inf)
    ranked = key.sort(dim=-1, descending=True, stable=True)
    n = torch.arange(2, p.shape[-1] + 2, device=p.device, dtype=torch.float32)
    sure = n * (1 - p.gather(-1, ranked.indices)) < factor
    return torch.zeros_like(known).scatter(-1, ranked.indices, sure)


def best_of(score: Tensor, known: Tensor) -> Tensor:
    """The first known position of each block with the best score, if any is known."""
    score = score.masked_fill(~known, -torch.inf)
    best = known & (score == score.amax(-1, keepdim=True))
    return best & (best.cumsum(-1) == 1)
