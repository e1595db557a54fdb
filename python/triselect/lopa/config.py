"""`Config`: how to decode."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from triselect.ops import Branches, Confidence
from triselect.ops.commit import RULES
from triselect.ops.spawn import ATTENTIONS
from triselect.ops.token_confidence import SCORES

BranchScore = Callable[[Branches, Confidence], Tensor]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a decoder.

    Plain threshold decoding, D2F, Fast-dLLM's rule and one token per step are settings of it, with
    and without lookaheads:

    ==================  =====================================================================
    LoPA on D2F         the defaults
    D2F                 ``num_lookaheads=0``
    threshold, blocks   ``add_threshold=1, activate_threshold=1``
    threshold, at once  ``block_length=length``
    Fast-dLLM's factor  ``factor=1.0``
    one by one          ``threshold=1.0`` and ``add_threshold=1``
    LLaDA, Dream        ``attention="bidirectional"``
    ==================  =====================================================================

    Parameters
    ----------
    length : int
        Positions to fill, a multiple of `block_length`.
    block_length : int
    num_lookaheads : int or "auto"
        Branches beside the anchor. "auto": as many as this device computes for free, which is
        measured once, at most `max_lookaheads`.
    threshold : float
        Probability above which a token is accepted.
    factor : float, optional
        Instead: accept the n most probable of a block with ``(n + 1) * (1 - p_n) < factor``
        (Fast-dLLM).
    add_threshold, activate_threshold : float
        Share of a block that must be filled before the next one is added, and before the next one
        takes its best token where none is above the threshold (D2F).
    open_blocks : int
        At most so many blocks are worked on at once; the model reads one block more.
    attention : "full", "block_causal" or "bidirectional"
        What an open position sees: the blocks worked on, those up to its own, or everything, which
        allows no cache.
    score : "max_prob", "margin" or "neg_entropy"
        The confidence by which lookaheads and fallbacks are chosen and branches are compared.
    branch_score : str or callable
        What a branch is worth: "mean" (LoPA), "lowest" (the mean of the `lowest` share), "count",
        "log_prob", "information_gain", "common_mean" (see `commit`), or a function of the branches
        and the model's ``Confidence (B, k + 1, W)`` that returns ``(B, k + 1)`` float32.
    confirm : float, optional
        A lookahead may win only where the anchor, which is read beside it, predicts the lookahead's
        own token too, with at least this probability. Not in the paper; it costs no forward.
    temperature : float
        0 takes the most probable token; above it tokens are sampled.
    top_k, top_p : optional
        Sample from the most probable tokens only.
    cache : bool
        Keep keys and values of what is frozen. The result is the same without, only slower.
    look_every : int, optional
        Rounds between two looks at the device: for the end, streaming, stop strings. Unless said
        otherwise 8, and 1 on the CPU, where a look costs nothing.
    compatibility : "released", optional
        Rounds and breaks ties between branches as the published code does.

    Raises
    ------
    ValueError, TypeError
        A setting out of range, by name, or two that contradict each other.
    """

    length: int = 256
    block_length: int = 32
    num_lookaheads: int | str = "auto"
    max_lookaheads: int = 7
    threshold: float = 0.9
    factor: float | None = None
    add_threshold: float = 0.1
    activate_threshold: float = 0.95
    open_blocks: int = 2
    attention: str = "full"
    score: str = "max_prob"
    branch_score: str | BranchScore = "mean"
    lowest: float = 0.5
    confirm: float | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    cache: bool = True
    look_every: int | None = None
    compatibility: str | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("length", 0),
            ("block_length", 1),
            ("max_lookaheads", 0),
            ("open_blocks", 1),
        ):
            _must_be_int(name, getattr(self, name), least)
        if self.look_every is not None:
            _must_be_int("look_every", self.look_every, 1)
        if self.num_lookaheads != "auto":
            _must_be_int("num_lookaheads", self.num_lookaheads, 0, ' or "auto"')
        if self.top_k is not None:
            _must_be_int("top_k", self.top_k, 1)
        if self.length % self.block_length:
            raise ValueError(
                f"length must be a multiple of block_length, got {self.length} and "
                f"{self.block_length}"
            )
        for name, low, high in (
            ("threshold", 0, 1),
            ("factor", 0, math.inf),
            ("add_threshold", 0, 1),
            ("activate_threshold", 0, 1),
            ("lowest", 0, 1),
            ("confirm", 0, 1),
            ("temperature", 0, math.inf),
            ("top_p", 0, 1),
        ):
            value = getattr(self, name)
            if value is None and name in ("factor", "confirm", "top_p"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, got {type(value).__name__}")
            if not low <= value <= high or value == math.inf:
                raise ValueError(f"{name} must be between {low} and {high}, got {value}")
        for name in ("factor", "top_p", "lowest"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be above 0, got 0")
        for name, known in (("attention", ATTENTIONS), ("score", SCORES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not callable(self.branch_score) and self.branch_score not in RULES:
            raise ValueError(
                f"branch_score must be a function or one of {RULES}, got {self.branch_score!r}"
            )
        if self.branch_score == "information_gain" and self.score != "neg_entropy":
            raise ValueError('branch_score="information_gain" compares score="neg_entropy"')
        if self.compatibility not in (None, "released"):
            raise ValueError(f'compatibility must be "released", got {self.compatibility!r}')
        if self.cache and self.attention == "bidirectional":
            raise ValueError(
                'attention="bidirectional" lets every position see every other, so that nothing '
                "can be kept: use it with cache=False"
            )
        if (self.top_k or self.top_p) and not self.temperature:
            raise ValueError("top_k and top_p choose what to sample from: set a temperature")

    @property
    def window(self) -> int:
        """Positions that the model reads in a round: the open blocks, and one to be frozen."""
        if self.attention == "bidirectional":
            return self.length
        return min(self.length, (self.open_blocks + 1) * self.block_length)

    @property
    def add_at(self) -> int:
        return at_least(self.add_threshold, self.block_length)

    @property
    def activate_at(self) -> int:
        return at_least(self.activate_threshold, self.block_length)


def at_least(share: float, of: int) -> int:
    """The least number that is this share: 0.1 of 30 is 3, though 0.1 * 30 is more in floats."""
    return math.ceil(share * of * (1 - 1e-12))


def _must_be_int(name: str, value: object, least: int, otherwise: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int{otherwise}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
