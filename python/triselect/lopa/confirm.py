"""Which lookaheads may win: those whose own token the anchor, read beside them, predicts too."""

import torch
from torch import Tensor

from triselect.ops import Branches, Confidence


def keep_confirmed(
    branches: Branches, new: Confidence, old: Confidence, start: Tensor, least: float, shift: bool
) -> Branches:
    """The branches without those lookaheads that the anchor does not confirm.

    A lookahead's own token was predicted before this round filled anything. The anchor predicts its
    position anew, with all else that the round fills: where it says the same with a probability of
    `least` or more, the lookahead is a round ahead of it. At the threshold that is a token that the
    anchor would take in the next round itself.

    `new`: Confidence of ``(B, k + 1, W)``, what the model predicted, token -1 where nothing was
    asked; `old` of ``(B, G)``, what it
    had predicted before; `start` ``(B,)``, where the window begins. With `shift`, row i predicts
    position i + 1, and the first position keeps what was predicted before: its row is frozen.
    """
    place = (branches.extra - start[:, None]).clamp_min(0).long()  # in the window
    own = branches.tokens.gather(2, place[..., None])[..., 0]
    row = (place - int(shift)).clamp_min(0)
    token, prob = (x[:, 0].gather(1, row) for x in new[:2])
    if shift:
        at = branches.extra.clamp_min(0).long()
        first = place == 0
        token = old.token.gather(1, at).where(first, token)
        prob = old.prob.gather(1, at).where(first, prob)
    confirmed = (token == own) & (prob >= least)
    return branches._replace(extra=torch.where(confirmed, branches.extra, -1))
