"""`commit`: a round of LoPA behind the model: what each branch is worth, and the winner's state."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.kernels.commit.reference import RULES
from triselect.ops import backends, operator
from triselect.ops.spawn import (
    Branches,
    must_be_bool,
    must_be_float_in_range,
    must_be_state,
    must_fit,
)
from triselect.ops.token_confidence import Confidence

__all__ = ["RULES", "Committed", "commit"]


class Committed(NamedTuple):
    """`tokens` ``(B, G)`` int32; `predicted`: Confidence of ``(B, G)``, token -1 where nothing is
    open; `filled_at` ``(B, G)`` int32: the round that filled a position, from 1; 0 where none has;
    `filled_by` ``(B, G)`` int32: 0 the anchor, j lookahead j's own token, -1 none; `winner`
    ``(B,)`` int32; `worth` ``(B, k + 1)`` float32.
    """

    tokens: Tensor
    predicted: Confidence
    filled_at: Tensor
    filled_by: Tensor
    winner: Tensor
    worth: Tensor


def commit(
    tokens: Tensor,
    predicted: Confidence,
    filled_at: Tensor,
    filled_by: Tensor,
    step: Tensor,
    start: Tensor,
    branches: Branches,
    new: Confidence,
    *,
    rule: str = "mean",
    ratio: float = 1.0,
    threshold: float = 0.9,
    worth: Tensor | None = None,
    shift: bool = False,
    released: bool = False,
    backend: str = "auto",
) -> Committed:
    """Find what each branch is worth, and make the best one's tokens and predictions the state's.

    Parameters
    ----------
    tokens, predicted, filled_at, filled_by
        The state before the round, ``(B, G)`` each, as `Committed` has it; any strides.
    step : ``(B,)`` int32
        The number of this round, from 1.
    start : ``(B,)`` int32
        Where this round's window began: what `spawn` was given, not what it returned.
    branches : Branches
        What `spawn` returned, W positions of k + 1 branches.
    new : Confidence of ``(B, k + 1, W)`` or ``(B * (k + 1) * W,)``
        What the model predicted for them. Where nothing was asked it is not looked at.
    rule : str
        What a branch with n open positions is worth:

        ==================  ================================================================
        "mean"              the mean of their scores (LoPA, equation 2)
        "lowest"            the mean of the ``max(1, int(ratio * n))`` lowest scores
        "count"             how many have a prob above `threshold`, 1 more for a lookahead
        "log_prob"          the sum of log(prob), that of a lookahead's own token included
        "information_gain"  the mean of the scores, and the score of a lookahead's own token
        "common_mean"       the mean over positions that are open in all branches, or 0
        ==================  ================================================================

        With nothing open it is worth +inf, and -inf where it would be NaN.
    ratio : float
        Above 0, at most 1.
    threshold : float
        Between 0 and 1.
    worth : ``(B, k + 1)`` float32, optional
        What the branches are worth, instead of a rule.
    shift : bool
        The model's row i predicts position i + 1 of the window.
    released : bool
        As the published code does: worth rounded to bfloat16, and the anchor last among equals.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    Committed
        The state after the round, in tensors of its own, and which branch won: of equal ones the
        first, which is the anchor.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name. Values of `start` and `branches.extra` are looked
        at on the CPU; on a device those out of range make an undefined result and nothing worse.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    LoPA (arXiv 2512.16229), algorithm 1 behind the forward pass. Sums are in float64 and rounded to
    float32 once, so that branches that are worth the same tie on every backend; logarithms may
    differ in the last bit. Shapes do not depend on values; nothing waits for the device. No
    gradient.

    Examples
    --------
    >>> from triselect.ops import spawn
    >>> tokens = torch.full((1, 2), 9, dtype=torch.int32)
    >>> one, zero = torch.ones(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    >>> score = torch.tensor([[0.6, 0.5]])
    >>> predicted = Confidence(torch.tensor([[1, 2]], dtype=torch.int32), score, score)
    >>> branches = spawn(
    ...     tokens, predicted, one, zero, block_length=2, window=2, num_lookaheads=1,
    ...     mask_token=9, add_at=1, activate_at=2,
    ... )
    >>> branches.tokens.tolist()
    [[[1, 9], [1, 2]]]
    >>> score = torch.tensor([[[0.0, 0.7], [0.0, 0.0]]])
    >>> new = Confidence(torch.full((1, 2, 2), 3, dtype=torch.int32), score, score)
    >>> after = commit(
    ...     tokens, predicted, torch.zeros_like(tokens), torch.zeros_like(tokens) - 1, one, zero,
    ...     branches, new,
    ... )
    >>> after.tokens.tolist(), after.filled_by.tolist(), after.winner.item()
    ([[1, 2]], [[0, 1]], 1)
    """
    branch, is_open, _, extra, *_ = branches
    state = (tokens, *predicted, filled_at, filled_by, step, start)
    given = (branch, is_open, extra, *new, worth)
    args = (*state, *given, rule, ratio, threshold, shift, released)
    _validate(*args)
    if backend == "auto":
        found = _commit.auto(*args)
    else:
        backends.must_be_known(backend)
        found = _commit.named(*args, backend)
    after, token, prob, score, *rest = found
    return Committed(after, Confidence(token, prob, score), *rest)


def _validate(
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
) -> None:
    must_be_state(tokens, token, prob, score)
    shape, device = tokens.shape, tokens.device
    one = shape[:1]
    must_fit("filled_at", filled_at, shape, torch.int32, device)
    must_fit("filled_by", filled_by, shape, torch.int32, device)
    must_fit("step", step, one, torch.int32, device)
    must_fit("start", start, one, torch.int32, device)
    if not isinstance(branch, Tensor):
        raise TypeError(f"branches.tokens must be a tensor, got {type(branch).__name__}")
    of_branch = branch.shape
    if (
        len(of_branch) != 3
        or of_branch[:1] != one
        or not of_branch[1]
        or not 1 <= of_branch[2] <= shape[1]
    ):
        raise ValueError(
            f"branches.tokens must be (batch, branches, window) for {one[0]} sequences of "
            f"{shape[1]} positions, got shape {tuple(of_branch)}"
        )
    must_fit("branches.tokens", branch, of_branch, torch.int32, device)
    must_fit("branches.open", is_open, of_branch, torch.bool, device)
    must_fit("branches.extra", extra, of_branch[:2], torch.int32, device)
    if isinstance(new_token, Tensor) and new_token.dim() == 1:
        of_branch = torch.Size((of_branch.numel(),))
    must_fit("new.token", new_token, of_branch, torch.int32, device)
    must_fit("new.prob", new_prob, of_branch, torch.float32, device)
    must_fit("new.score", new_score, of_branch, torch.float32, device)
    if worth is not None:
        must_fit("worth", worth, branch.shape[:2], torch.float32, device)
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, got {rule!r}")
    must_be_float_in_range("ratio", ratio, 0, 1)
    if not ratio:
        raise ValueError("ratio must be above 0, got 0")
    must_be_float_in_range("threshold", threshold, 0, 1)
    must_be_bool("shift", shift)
    must_be_bool("released", released)


def _check(tokens: Tensor, *args: Any) -> None:
    start, extra, length = args[6], args[9], tokens.shape[1]
    operator.must_be_in_range("start", start, 0, length, "the positions")
    operator.must_be_in_range("branches.extra", extra, -1, length - 1, "-1 for no branch")


def _empty(tokens: Tensor, *args: Any) -> tuple[Tensor, ...]:
    shape, rows = tokens.shape, args[7].shape[1]
    integers = [tokens.new_empty(shape) for _ in range(4)]
    floats = [tokens.new_empty(shape, dtype=torch.float32) for _ in range(2)]
    return (
        *(*integers[:2], *floats, *integers[2:], tokens.new_empty(shape[0])),
        tokens.new_empty((shape[0], rows), dtype=torch.float32),
    )


_commit = operator.define(
    "commit",
    "Tensor tokens, Tensor token, Tensor prob, Tensor score, Tensor filled_at, Tensor filled_by, "
    "Tensor step, Tensor start, Tensor branch, Tensor is_open, Tensor extra, "
    "Tensor new_token, Tensor new_prob, Tensor new_score, Tensor? worth, "
    "str rule, float ratio, float threshold, bool shift, bool released",
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _empty,
    check=_check,
)
