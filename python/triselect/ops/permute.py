"""`permute`: token copies in the order of their experts."""

from typing import NamedTuple

import torch
from torch import Tensor

from triselect.ops import backends, operator


class Permutation(NamedTuple):
    """Rows in the order of their experts.

    ``source (T * K,)``, ``slot_of (T, K)`` and ``offsets (E + 1,)``, all int32. Row i is a copy of
    token ``source[i]``; expert e has the rows ``offsets[e]`` to ``offsets[e + 1] - 1``; assignment
    (t, k) has row ``slot_of[t, k]``.
    """

    source: Tensor
    slot_of: Tensor
    offsets: Tensor


def permute(
    experts: Tensor, num_experts: int, *, validate: bool = False, backend: str = "auto"
) -> Permutation:
    """Put the copies of the tokens in the order of their experts: a stable sort, by counting.

    Parameters
    ----------
    experts : ``(T, K)`` int32 or int64
        Experts of T tokens (0 and up), any strides. -1 is padding and gets no row.
    num_experts : int
        E.
    validate : bool
        Look at the values of `experts` on a device too, which waits for it. On the CPU they are
        always looked at.
    backend : "auto", "native", "triton", "eager" or "reference"
        A named backend runs or raises; "auto" chooses by device.

    Returns
    -------
    Permutation
        ``source (T * K,)``, ``slot_of (T, K)`` and ``offsets (E + 1,)``, all int32. Where padding
        leaves nothing to say, `source` (from ``offsets[E]`` on) and `slot_of` are -1.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name. Experts out of range are refused on the CPU; on a
        device they act as padding, unless `validate` asks to look.
    BackendUnavailable
        A named backend that cannot run here.

    Notes
    -----
    Copies of one expert keep the order of their tokens, so the same input gives the same rows on
    every run and every backend. Shapes do not depend on values; nothing waits for the device.

    Examples
    --------
    >>> experts = torch.tensor([[2, 0], [0, 1]])
    >>> source, slot_of, offsets = permute(experts, 3)
    >>> source, offsets  # expert 0 reads tokens 0 and 1, expert 1 token 1, expert 2 token 0
    (tensor([0, 1, 1, 0], dtype=torch.int32), tensor([0, 2, 3, 4], dtype=torch.int32))
    >>> slot_of
    tensor([[3, 0],
            [1, 2]], dtype=torch.int32)
    """
    _validate(experts, num_experts)
    if validate:
        _check(experts, num_experts)
    if backend == "auto":
        return Permutation(*_permute.auto(experts, num_experts))
    backends.must_be_known(backend)
    return Permutation(*_permute.named(experts, num_experts, backend))


def _validate(experts: Tensor, num_experts: int) -> None:
    if not isinstance(experts, Tensor):
        raise TypeError(f"experts must be a tensor, got {type(experts).__name__}")
    if experts.dim() != 2:
        raise ValueError(f"experts must be (tokens, top_k), got shape {tuple(experts.shape)}")
    if experts.dtype is not torch.int32 and experts.dtype is not torch.int64:
        raise TypeError(f"experts must be int32 or int64, got {experts.dtype}")
    if experts.shape[1] < 1:
        raise ValueError("experts must have at least one column, got none")
    if experts.numel() > operator.LARGEST_INT32:
        raise ValueError(f"experts must have at most 2**31 - 1 entries, got {experts.numel()}")
    operator.must_be_int("num_experts", num_experts)
    if not 1 <= num_experts < operator.LARGEST_INT32:
        raise ValueError(f"num_experts must be between 1 and 2**31 - 2, got {num_experts}")


def _check(experts: Tensor, num_experts: int) -> None:
    operator.must_be_in_range("experts", experts, -1, num_experts - 1, "-1 for padding")


def empty_permutation(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of a permutation, without values."""
    tokens, k = experts.shape
    shapes: tuple[tuple, ...] = ((tokens * k,), (tokens, k), (num_experts + 1,))
    source, slot_of, offsets = (experts.new_empty(s, dtype=torch.int32) for s in shapes)
    return source, slot_of, offsets


_permute = operator.define(
    "permute",
    "Tensor experts, int num_experts",
    "(Tensor source, Tensor slot_of, Tensor offsets)",
    empty_permutation,
    check=_check,
)
