"""The ways of decoding that `triselect play lopa` compares."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from triselect import lopa
from triselect.models.puzzles import BLOCK, LENGTH, Kind

TAUS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
# One block after the other; else a block is begun while others are still open (D2F).
IN_TURN = {"add_threshold": 1.0, "activate_threshold": 1.0}


@dataclass(frozen=True)
class Method:
    """Settings of the decoder; `verified` where what is chosen depends on all branches' rows."""

    name: str
    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    lookaheads: int = 0
    swept: bool = True
    verified: bool = True

    def config(self, kind: Kind, tau: float, lookaheads: int | None = None) -> lopa.Config:
        """`tau` is the threshold; of Fast-dLLM's rule the factor that asks as much of a token
        alone.
        """
        settings = dict(self.settings)
        if self.swept:
            settings |= {"factor": 2 * (1 - tau)} if "factor" in settings else {"threshold": tau}
        return lopa.Config(
            length=LENGTH[kind],
            block_length=BLOCK[kind],
            num_lookaheads=self.lookaheads if lookaheads is None else lookaheads,
            **settings,
        )


def take_unseen(branches: lopa.Branches, new: lopa.Confidence) -> Tensor:
    """The lookahead wins, whatever the model says of it."""
    worth = torch.zeros_like(branches.extra, dtype=torch.float32)
    worth[:, 1:] = 1
    return worth


def of_score(
    name: str, title: str, rule: str, score: str = "max_prob", confirm: float | None = None
) -> Method:
    settings = {"branch_score": rule, "score": score, "confirm": confirm}
    return Method(name, f"LoPA, {title}", settings, lookaheads=3)


ONE = Method("one", "one by one", {"threshold": 1.0, **IN_TURN}, swept=False)
THRESHOLD = Method("threshold", "threshold", IN_TURN)
FACTOR = Method("factor", "Fast-dLLM's factor", {"factor": 1.0, **IN_TURN})
D2F = Method("d2f", "D2F")
EXTRA = Method(
    "extra", "one more, not verified", {"branch_score": take_unseen}, lookaheads=1, verified=False
)
SCORES = (
    of_score("mean", "mean probability", "mean"),
    of_score("margin", "mean margin", "mean", "margin"),
    of_score("entropy", "mean entropy", "mean", "neg_entropy"),
    of_score("lowest", "mean of the lowest half", "lowest"),
    of_score("common", "mean of the common ones", "common_mean"),
    of_score("count", "number above τ", "count"),
    of_score("log_prob", "sum of logarithms", "log_prob"),
    of_score("gain", "information gain", "information_gain", "neg_entropy"),
    of_score("count_entropy", "number, by entropy", "count", "neg_entropy"),
    # Not in the paper: what wins, the anchor says too.
    of_score("confirmed_7", "number, confirmed at 0.7", "count", "neg_entropy", 0.7),
    of_score("confirmed_9", "number, confirmed at 0.9", "count", "neg_entropy", 0.9),
)
METHODS = (ONE, THRESHOLD, FACTOR, D2F, EXTRA, *SCORES)


def methods(kind: Kind) -> tuple[Method, ...]:
    """Those that differ: where all is one block there is no pipeline."""
    one_block = BLOCK[kind] == LENGTH[kind]
    return tuple(method for method in METHODS if not (one_block and method is D2F))
