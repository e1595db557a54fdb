"""A round of LoPA where the loop, the model and the cache are another library's.

Nothing is kept between two calls: the tokens of all branches say what they are.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from triselect.lopa import Branches, Confidence, Config, commit, spawn, token_confidence
from triselect.lopa.confirm import keep_confirmed

OPTIONS = ("num_lookaheads", "threshold", "factor", "score", "branch_score", "lowest", "confirm")
# The others also go by how sure a lookahead's own token was, which its tokens do not tell.
RULES = ("mean", "lowest", "count", "common_mean")


class Round(NamedTuple):
    """`tokens` ``(B * (k + 1), W)``: what the model is to read next, in the dtype of those given.
    `new`: Confidence of ``(B * (k + 1), W)``, token -1 where nothing was open. `are_branches`
    ``(B,)`` bool: whether what was given were the branches of one sequence.
    """

    tokens: Tensor
    new: Confidence
    are_branches: Tensor


def settings(block_length: int, **options: Any) -> Config:
    """Settings of a round, refused by name where they do not fit."""
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"options must be among {OPTIONS}, got {name!r}")
    rule = options.get("branch_score", "mean")
    if rule not in RULES:
        raise ValueError(f"branch_score must be one of {RULES}, got {rule!r}")
    if options.get("num_lookaheads") == "auto":
        raise ValueError('num_lookaheads must be an int: the batch has a row for each, got "auto"')
    given = {"num_lookaheads": 0, "threshold": 0.95} | options
    return Config(
        length=block_length,
        block_length=block_length,
        attention="bidirectional",  # what a position sees is the model's business
        cache=False,
        **given,
    )


def next_round(
    tokens: Tensor, logits: Tensor, config: Config, mask_token: int, *, blocks_to_come: bool
) -> Round:
    """Keep the best branch of each sequence, fill what is sure in it, and look ahead anew.

    `tokens` ``(B * (k + 1), W)`` integers, of each sequence the anchor and behind it its k
    lookaheads, or k copies of it where there are none yet; `logits` ``(B * (k + 1), W, V)``, what
    the model said to them. One block after the other is filled; where there are `blocks_to_come`
    behind the W positions, a lookahead never fills the last one.
    """
    rows, length = int(config.num_lookaheads) + 1, config.block_length
    _must_fit(tokens, logits, rows, length)
    window = tokens.shape[1]
    branch = tokens.reshape(-1, rows, window).int()
    anchor, masked = branch[:, 0], branch == mask_token

    # A lookahead is the anchor and one token more. A row that is as the anchor was not spawned.
    differs = branch != anchor[:, None]
    live = differs.any(-1)
    extra = differs.int().argmax(-1).int().masked_fill(~live, -1)
    live[:, 0] = True
    is_one_more = (differs.sum(-1) <= 1) & (masked[:, :1] | ~differs).all(-1)

    complete = ~masked[:, 0].reshape(-1, window // length, length).any(-1)
    added = (complete.cumprod(-1).sum(-1) + 1).clamp_max(window // length).int()
    place = torch.arange(window, device=tokens.device)
    is_open = masked & live[..., None] & (place < added[:, None, None] * length)

    new = token_confidence(
        logits.flatten(0, 1), score=config.score, mask_token=mask_token, rows=is_open.flatten()
    )
    new = Confidence(*(x.view(branch.shape) for x in new))
    zeros, start = torch.zeros_like(anchor), torch.zeros_like(added)
    before = Confidence(zeros - 1, zeros.float(), zeros.float())
    branches = Branches(branch, is_open, is_open, extra, zeros, added, start)
    if config.confirm is not None:
        branches = keep_confirmed(branches, new, before, start, config.confirm, shift=False)
    won = commit(
        anchor,
        before,
        zeros,
        zeros,
        start,
        start,
        branches,
        new,
        rule=str(config.branch_score),
        ratio=config.lowest,
        threshold=config.threshold,
    )
    behind = (0, length if blocks_to_come else 0)  # a block more, whatever it holds
    spawned = spawn(
        F.pad(won.tokens, behind),
        Confidence(*(F.pad(x, behind) for x in won.predicted)),
        added,
        start,
        block_length=length,
        window=window,
        num_lookaheads=rows - 1,
        mask_token=mask_token,
        threshold=config.threshold,
        factor=config.factor or 0.0,
        add_at=length,
        activate_at=length,
        attention="bidirectional",
    )
    return Round(
        spawned.tokens.to(tokens.dtype).view(tokens.shape),
        Confidence(*(x.view(tokens.shape) for x in new)),
        is_one_more.all(-1),
    )


def _must_fit(tokens: Tensor, logits: Tensor, rows: int, length: int) -> None:
    if tokens.dim() != 2 or tokens.is_floating_point() or tokens.is_complex():
        raise ValueError(
            f"tokens must be (rows, positions) integers, got {tuple(tokens.shape)} {tokens.dtype}"
        )
    if tokens.shape[0] % rows:
        raise ValueError(
            f"tokens must have {rows} rows per sequence, the anchor and num_lookaheads = "
            f"{rows - 1}, got {tokens.shape[0]} rows"
        )
    if not tokens.shape[1] or tokens.shape[1] % length:
        raise ValueError(
            f"tokens must have blocks of {length} positions, got {tokens.shape[1]} positions"
        )
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(
            f"logits must be {(*tokens.shape, 'vocabulary')}, got {tuple(logits.shape)}"
        )
