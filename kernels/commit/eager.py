"""A round of LoPA behind the model in plain PyTorch: any device, no synchronisation."""

import torch
from torch import Tensor


def commit(
    tokens: Tensor,
    token: Tensor,
    prob: Tensor,
    score: Tensor,
    filled_at: Tensor,
    filled_by: Tensor,
    step: Tensor,
    start: Tensor,
    branch: Tensor,
    is_open: Tensor,
    extra: Tensor,
    new_token: Tensor,
    new_prob: Tensor,
    new_score: Tensor,
    worth: Tensor | None,
    rule: str,
    ratio: float,
    threshold: float,
    shift: bool,
    released: bool,
) -> tuple[Tensor, ...]:
    """The state after the round: sequences ``(B, G)``, branches ``(B, k + 1, W)``."""
    length, (_, rows, window) = tokens.shape[1], branch.shape
    start = start.clamp(0, length)
    here = start[:, None] + torch.arange(window, device=tokens.device, dtype=torch.int32)
    real = (here < length)[:, None]
    is_open = is_open & real
    there = here.clamp_max(length - 1).long()

    def guess(old: Tensor, new: Tensor) -> Tensor:
        new = new.view(branch.shape)
        if not shift:
            return new
        first = old.gather(1, there[:, :1])[:, None].expand(-1, rows, -1)
        return torch.cat((first, new[..., :-1]), -1)

    new_token, new_prob, new_score = map(
        guess, (token, prob, score), (new_token, new_prob, new_score)
    )
    live = extra >= 0
    live[:, 0] = True
    own = extra.clamp(0, length - 1).long()
    if worth is None:
        own_prob, own_score = (x.gather(1, own) for x in (prob, score))
        worth = value(
            new_prob, new_score, is_open, live, own_prob, own_score, rule, ratio, threshold
        )
    worth = worth.masked_fill(~live | worth.isnan(), -torch.inf)
    if released:
        worth = worth.bfloat16().float()

    best = live & (worth == worth.masked_fill(~live, -torch.inf).amax(1, keepdim=True))
    best = best.roll(-1, 1) if released else best  # lookaheads, then the anchor
    winner = (best.cumsum(1) == 0).sum(1)  # how many come before the first
    winner = (winner + released) % rows
    of_winner = winner[:, None, None].expand(-1, 1, window)

    def won(x: Tensor) -> Tensor:
        return x.gather(1, of_winner)[:, 0]

    # What the window's positions become, and with them the sequence's.
    x, some = won(branch), won(is_open)
    place = torch.arange(length, device=tokens.device, dtype=torch.int32)
    inside = (place >= start[:, None]) & (place < start[:, None] + window)
    offset = (place - start[:, None]).clamp(0, window - 1).long()

    def replace(old: Tensor, new: Tensor) -> Tensor:
        return new.gather(1, offset).where(inside, old)

    after = replace(tokens, x)
    filled = inside & (after != tokens)
    extra_won = extra.gather(1, winner[:, None])
    by = winner[:, None].int() * (place == extra_won)
    return (
        after,
        replace(token, won(new_token).masked_fill(~some, -1)),
        replace(prob, won(new_prob).masked_fill(~some, 0)),
        replace(score, won(new_score).masked_fill(~some, -torch.inf)),
        step[:, None].where(filled, filled_at),
        by.where(filled, filled_by),
        winner.int(),
        worth,
    )


def value(
    prob: Tensor,
    score: Tensor,
    is_open: Tensor,
    live: Tensor,
    own_prob: Tensor,
    own_score: Tensor,
    rule: str,
    ratio: float,
    threshold: float,
) -> Tensor:
    """What each branch is worth, ``(B, k + 1)``; of one that was not spawned, anything."""
    score = score.double()
    n = is_open.sum(-1)
    ahead = live.clone()
    ahead[:, 0] = False

    def total(x: Tensor, some: Tensor) -> Tensor:
        return x.masked_fill(~some, 0).sum(-1)

    match rule:
        case "mean":
            found = total(score, is_open) / n
        case "lowest":
            ranked = score.masked_fill(~is_open, torch.nan).sort(dim=-1).values  # NaN is last
            few = (n.double() * ratio).long().clamp_min(1)
            found = total(ranked, few[..., None] > ranks(ranked)) / few
        case "count":
            found = ((prob > threshold) & is_open).sum(-1).double() + ahead
        case "log_prob":
            found = total(prob.double().log(), is_open)
            found = found + own_prob.double().log().masked_fill(~ahead, 0)
        case "information_gain":
            found = total(score, is_open) / n + own_score.masked_fill(~ahead, 0)
        case _:  # common_mean
            common = (is_open | ~live[..., None]).all(1, keepdim=True)
            count = common.sum(-1)
            found = total(score, common) / count.clamp_min(1)
    return found.masked_fill(n == 0, torch.inf).float()


def ranks(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], device=x.device)
