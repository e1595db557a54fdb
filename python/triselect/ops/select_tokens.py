"""`select_tokens`: the best tokens of a row of scores, in ascending order."""

import torch
from torch import Tensor

from triselect.ops import backends, cache, operator


def select_tokens(
    scores: Tensor,
    k: int,
    *,
    proximity: int = 0,
    start: Tensor | None = None,
    end: Tensor | None = None,
    validate: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Select the `k` best tokens of each row, by the best score within reach of each.

    Parameters
    ----------
    scores : ``(B, N)`` float32, float16 or bfloat16
        Scores of N tokens (0 and up) of B sequences, any strides.
    k : int
        How many to select, at least 1; more than there are selects all.
    proximity : int
        A token counts as much as the best one that is at most so many tokens away from it, within
        the range: by default as much as itself.
    start, end : ``(B,)`` int32 or int64, optional
        Sequence b selects from its tokens ``start[b]`` to ``end[b] - 1``: by default from all.
    validate : bool
        Look at the values of `start` and `end` on a device too, which waits for it. On the CPU
        they are always looked at.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    ``(B, k)`` int32
        Indices in ascending order, -1 behind them where the range has fewer than `k` tokens.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name. A range beyond the N tokens is refused on the CPU;
        on a device tokens that do not exist are not selected, unless `validate` asks to look.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    ESA (arXiv 2502.14477), equation 8 and the top k after it. Exact: scores are compared in
    float32, of equal ones the token with the lower index is selected first, -0 equals +0, and NaN
    counts as -inf, which is selected last. The same input gives the same indices on every run and
    every backend, whatever else is in the batch. Shapes do not depend on values; nothing waits for
    the device.

    Examples
    --------
    >>> scores = torch.tensor([[0.0, 3.0, 1.0, 3.0, 2.0, 0.0]])
    >>> select_tokens(scores, 3)
    tensor([[1, 3, 4]], dtype=torch.int32)
    >>> select_tokens(scores, 4, proximity=1)  # around the two best; the lower index first
    tensor([[0, 1, 2, 3]], dtype=torch.int32)
    >>> select_tokens(scores, 3, start=torch.tensor([4]))
    tensor([[ 4,  5, -1]], dtype=torch.int32)
    """
    args = (scores, k, proximity, start, end)
    _validate(*args)
    if validate:
        _check(*args)
    found: Tensor
    if backend == "auto":
        found = _select_tokens.auto(*args)
    else:
        backends.must_be_known(backend)
        found = _select_tokens.named(*args, backend)
    return found


def _validate(
    scores: Tensor, k: int, proximity: int, start: Tensor | None, end: Tensor | None
) -> None:
    cache.must_be_tensor("scores", scores, "(batch, tokens)")
    if scores.dtype not in cache.FLOATS:
        raise TypeError(f"scores must be float32, float16 or bfloat16, got {scores.dtype}")
    if scores.shape[1] > operator.LARGEST_INT32:
        raise ValueError(f"scores must have at most 2**31 - 1 tokens, got {scores.shape[1]}")
    for name, value, least in (("k", k, 1), ("proximity", proximity, 0)):
        operator.must_be_int(name, value)
        if not least <= value <= operator.LARGEST_INT32:
            raise ValueError(f"{name} must be between {least} and 2**31 - 1, got {value}")
    cache.must_be_per_sequence("start", start, scores)
    cache.must_be_per_sequence("end", end, scores)


def _check(
    scores: Tensor, k: int, proximity: int, start: Tensor | None, end: Tensor | None
) -> None:
    cache.check_range(start, end, scores.shape[1])


def _empty(
    scores: Tensor, k: int, proximity: int, start: Tensor | None, end: Tensor | None
) -> Tensor:
    return scores.new_empty((scores.shape[0], k), dtype=torch.int32)


_select_tokens = operator.define(
    "select_tokens",
    "Tensor scores, int k, int proximity, Tensor? start, Tensor? end",
    "Tensor",
    _empty,
    check=_check,
)
