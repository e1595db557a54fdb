"""`Metrics`: what a run of the decoder took, and `History`: what it filled when."""

from typing import NamedTuple

import torch
from torch import Tensor


class History(NamedTuple):
    """By position ``(B, G)``, int32 on the CPU.

    `round`: the one that filled it, from 1; 0 where none has. `branch`: 0 the anchor, j lookahead
    j's own token; -1 where nothing was filled.
    """

    round: Tensor
    branch: Tensor


class Metrics(NamedTuple):
    """Of a batch of B sequences. Lists have a number for each.

    A sequence's tokens are those up to the end of text or the stop string, and its rounds those
    that it took to fill them; what was filled behind them counts nowhere.
    """

    tokens: list[int]
    rounds: list[int]
    branch_forwards: list[int]
    """Rows of the model in these rounds: anchor and lookaheads, whether there was anything to look
    ahead to or not."""
    lookahead_wins: list[int]
    """Rounds that a lookahead won."""
    accepted: list[int]
    """By number of tokens, how many rounds filled so many; of all sequences together."""
    seconds: float
    first_seconds: float
    """Of these, before the first round: prompts read, first block predicted."""

    @property
    def tokens_per_round(self) -> float:
        """TPF of the papers, in which a round counts once, however many branches it has."""
        return sum(self.tokens) / max(1, sum(self.rounds))

    @property
    def tokens_per_branch_forward(self) -> float:
        return sum(self.tokens) / max(1, sum(self.branch_forwards))

    @property
    def lookahead_win_rate(self) -> float:
        return sum(self.lookahead_wins) / max(1, sum(self.rounds))

    @property
    def tokens_per_second(self) -> float:
        return sum(self.tokens) / self.seconds

    @property
    def tokens_per_second_after_first(self) -> float:
        """As published figures leave the first step out."""
        return sum(self.tokens) / max(self.seconds - self.first_seconds, 1e-9)


def measure(
    history: History, lengths: list[int], widths: list[int], seconds: float, first_seconds: float
) -> Metrics:
    """Of sequences of these lengths, and rounds with so many lookaheads."""
    rounds, forwards, wins, accepted = [], [], [], torch.zeros(1, dtype=torch.int64)
    for filled_at, filled_by, length in zip(*history, lengths, strict=True):
        last = int(filled_at[:length].max()) if length else 0
        rounds.append(last)
        forwards.append(sum(width + 1 for width in widths[:last]))
        wins.append(len(filled_at[(filled_by > 0) & (filled_at <= last)].unique()))
        filled = torch.bincount(filled_at[:length].long(), minlength=last + 1)[1:]
        counts = torch.bincount(filled, minlength=len(accepted))
        counts[: len(accepted)] += accepted
        accepted = counts
    return Metrics(lengths, rounds, forwards, wins, accepted.tolist(), seconds, first_seconds)
