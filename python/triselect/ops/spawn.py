"""`spawn`: a round of LoPA up to the model: the anchor, its lookaheads, what the model reads."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from triselect.kernels.spawn.reference import FAR
from triselect.ops import backends, cache, operator
from triselect.ops.token_confidence import Confidence

__all__ = ["ATTENTIONS", "FAR", "Branches", "spawn"]

ATTENTIONS = ("full", "block_causal", "bidirectional")


class Branches(NamedTuple):
    """What the model reads, W positions of k + 1 branches of B sequences.

    `tokens` ``(B, k + 1, W)`` int32. `open` and `asked` ``(B, k + 1, W)`` bool: positions to be
    predicted, and the rows of the model that predict them. `extra` ``(B, k + 1)`` int32: the
    position of a lookahead's own token, -1 for the anchor and where there is no such branch.
    `level` ``(B, W)`` int32: a position sees those at its level or below. `added` ``(B,)`` int32:
    blocks in the pipeline. `start` ``(B,)`` int32: where the next window begins.
    """

    tokens: Tensor
    open: Tensor
    asked: Tensor
    extra: Tensor
    level: Tensor
    added: Tensor
    start: Tensor


def spawn(
    tokens: Tensor,
    predicted: Confidence,
    added: Tensor,
    start: Tensor,
    *,
    block_length: int,
    window: int,
    num_lookaheads: int,
    mask_token: int,
    eos_token: int = -1,
    threshold: float | Tensor = 0.9,
    factor: float = 0.0,
    add_at: int,
    activate_at: int,
    attention: str = "full",
    shift: bool = False,
    backend: str = "auto",
) -> Branches:
    """Fill what is sure, look ahead with one more token in each of k branches, move the window.

    Parameters
    ----------
    tokens : ``(B, G)`` int32
        Positions to fill of B sequences, any strides. Those that hold the mask token, in the blocks
        added, before the first end of text, are open.
    predicted : Confidence of ``(B, G)``
        What was predicted for them in the round before: `token` int32, -1 where nothing was,
        `prob` and `score` float32. A score of NaN counts as -inf.
    added : ``(B,)`` int32
        Blocks in the pipeline, all of them before the end of the window.
    start : ``(B,)`` int32
        Where the window begins, a multiple of `block_length`. No position before it is open.
    block_length, window : int
        `block_length` divides `window` and G; the window has at most G positions.
    num_lookaheads : int
        k, 0 and up: branches beside the anchor, as many as there are positions for them, and none
        that would fill the last open position while blocks are to come.
    mask_token, eos_token : int
        The tokens of a position to fill, and of the end of text; -1 where there is none.
    threshold : float, or ``(B,)`` float32
        An open position whose prob is above it is filled; between 0 and 1, and 1 fills none by it.
        As a tensor one for each sequence, and torch.compile compiles once for all values; of a
        float it makes a constant.
    factor : float
        If above 0, instead: the n most probable of a block, ``(n + 1) * (1 - prob_n) < factor``.
    add_at : int
        The next block is added once so many positions of the last one are filled.
    activate_at : int
        A block takes its best token where none is sure, once so many of the one before are filled.
    attention : "full", "block_causal" or "bidirectional"
        What an open position sees: all blocks added, those up to its own, or everything.
    shift : bool
        The model's row i predicts position i + 1 of the window.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    Branches
        The window of the anchor and of k lookaheads; positions behind G hold the mask token, are
        not open and at level ``FAR``, as are those of blocks that are not added.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name. Values of `added`, `start` and `threshold` are
        looked at on the CPU; on a device those out of range make an undefined result and nothing
        worse.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    LoPA (arXiv 2512.16229), equation 1 and algorithm 1 up to the forward pass; D2F's pipeline of
    blocks (algorithm 2 there); Fast-dLLM's factor. Exact: of equal numbers the one at the lowest
    position is first, comparisons are in float32, and every backend returns the same, whatever else
    is in the batch. Shapes do not depend on values; nothing waits for the device. No gradient.

    Examples
    --------
    >>> mask = 9
    >>> tokens = torch.full((1, 4), mask, dtype=torch.int32)
    >>> predicted = Confidence(
    ...     torch.tensor([[1, 2, 3, 4]], dtype=torch.int32),
    ...     torch.tensor([[0.3, 0.95, 0.5, 0.6]]),
    ...     torch.tensor([[0.3, 0.95, 0.5, 0.6]]),
    ... )
    >>> one, zero = torch.ones(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    >>> spawn(
    ...     tokens, predicted, one, zero, block_length=4, window=4, num_lookaheads=2,
    ...     mask_token=mask, add_at=1, activate_at=4,
    ... ).tokens  # the sure one, and beside it the two next best
    tensor([[[9, 2, 9, 9],
             [9, 2, 9, 4],
             [9, 2, 3, 9]]], dtype=torch.int32)
    """
    sizes = (block_length, window, num_lookaheads)
    thresholds = threshold if isinstance(threshold, Tensor) else None
    one = 1.0 if isinstance(threshold, Tensor) else threshold
    how = (mask_token, eos_token, one, factor, add_at, activate_at, attention, shift)
    args = (tokens, *predicted, added, start, thresholds, *sizes, *how)
    _validate(*args)
    if backend == "auto":
        return Branches(*_spawn.auto(*args))
    backends.must_be_known(backend)
    return Branches(*_spawn.named(*args, backend))


def _validate(
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
) -> None:
    must_be_state(tokens, token, prob, score)
    batch, length = tokens.shape
    device = tokens.device
    must_fit("added", added, (batch,), torch.int32, device)
    must_fit("start", start, (batch,), torch.int32, device)
    if thresholds is not None:
        must_fit("threshold", thresholds, (batch,), torch.float32, device)
    most = operator.LARGEST_INT32
    must_be_int_in_range("block_length", block_length, 1, length)
    must_be_int_in_range("window", window, block_length, length)
    for name, value in (("window", window), ("tokens", length)):
        if value % block_length:
            raise ValueError(
                f"{name} must be a multiple of block_length, {block_length} positions, got {value}"
            )
    must_be_int_in_range("num_lookaheads", num_lookaheads, 0, most - 1)
    must_be_int_in_range("mask_token", mask_token, 0, most)
    must_be_int_in_range("eos_token", eos_token, -1, most)
    if eos_token == mask_token:
        raise ValueError(f"eos_token and mask_token must differ, both are {mask_token}")
    must_be_float_in_range("threshold", threshold, 0, 1)
    must_be_float_in_range("factor", factor, 0, LARGEST_FLOAT32)
    must_be_int_in_range("add_at", add_at, 0, block_length)
    must_be_int_in_range("activate_at", activate_at, 0, block_length)
    if attention not in ATTENTIONS:
        raise ValueError(f"attention must be one of {ATTENTIONS}, got {attention!r}")
    must_be_bool("shift", shift)


LARGEST_FLOAT32 = torch.finfo(torch.float32).max


def must_be_state(tokens: Tensor, token: Tensor, prob: Tensor, score: Tensor) -> None:
    """Raises unless they are sequences ``(B, G)`` and what is predicted for them."""
    cache.must_be_tensor("tokens", tokens, "(batch, positions)")
    shape, device = tokens.shape, tokens.device
    if not shape[1]:
        raise ValueError(f"tokens must have a position or more, got shape {tuple(shape)}")
    if shape[1] > operator.LARGEST_INT32:
        raise ValueError(f"tokens must have at most 2**31 - 1 positions, got {shape[1]}")
    must_fit("tokens", tokens, shape, torch.int32, device)
    must_fit("predicted.token", token, shape, torch.int32, device)
    must_fit("predicted.prob", prob, shape, torch.float32, device)
    must_fit("predicted.score", score, shape, torch.float32, device)


def must_fit(
    name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """Raises unless `value` is a tensor of this shape and dtype on `device`."""
    if (
        isinstance(value, Tensor)
        and value.dtype is dtype
        and value.shape == shape
        and value.device == device
    ):
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.shape != shape:
        raise ValueError(f"{name} must be {tuple(shape)}, got shape {tuple(value.shape)}")
    if value.dtype is not dtype:
        raise TypeError(f"{name} must be {dtype}, got {value.dtype}")
    raise ValueError(f"{name} must be on {device} as the others, got {value.device}")


def must_be_int_in_range(name: str, value: Any, low: int, high: int) -> None:
    if type(value) is int and low <= value <= high:
        return
    operator.must_be_int(name, value)
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")


def must_be_float_in_range(name: str, value: Any, low: float, high: float) -> None:
    if type(value) is float and low <= value <= high:
        return
    if isinstance(value, bool) or not isinstance(value, FLOATS):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")


FLOATS = (float, int, torch.SymFloat)  # symbolic where torch.compile makes them so


def must_be_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def _check(
    tokens: Tensor,
    token: Tensor,
    prob: Tensor,
    score: Tensor,
    added: Tensor,
    start: Tensor,
    thresholds: Tensor | None,
    block_length: int,
    window: int,
    *options: Any,
) -> None:
    length = tokens.shape[1]
    operator.must_be_in_range("added", added, 0, length // block_length, "the blocks")
    operator.must_be_in_range("start", start, 0, length, "the positions")
    if thresholds is not None and not ((thresholds >= 0) & (thresholds <= 1)).all():
        raise ValueError(f"threshold must be between 0 and 1, got {thresholds.tolist()}")
    for blocks, first in zip(added.tolist(), start.tolist(), strict=True):
        if first % block_length:
            raise ValueError(
                f"start must be a multiple of block_length, {block_length}, got {first}"
            )
        if blocks * block_length > first + window:
            raise ValueError(
                f"added must end in the window, got {blocks} blocks of {block_length} and a window "
                f"from {first} to {first + window}"
            )


def _empty(
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
    *options: Any,
) -> tuple[Tensor, ...]:
    batch, rows = tokens.shape[0], num_lookaheads + 1
    flags = tokens.new_empty((batch, rows, window), dtype=torch.bool)
    return (
        tokens.new_empty((batch, rows, window)),
        flags,
        torch.empty_like(flags),
        tokens.new_empty((batch, rows)),
        tokens.new_empty((batch, window)),
        tokens.new_empty(batch),
        tokens.new_empty(batch),
    )


_spawn = operator.define(
    "spawn",
    "Tensor tokens, Tensor token, Tensor prob, Tensor score, Tensor added, Tensor start, "
    "Tensor? thresholds, int block_length, int window, int num_lookaheads, int mask_token, "
    "int eos_token, float threshold, float factor, int add_at, int activate_at, str attention, "
    "bool shift",
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _empty,
    check=_check,
)
