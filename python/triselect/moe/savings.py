"""What routing over fewer experts saves, and what it changes."""

from typing import NamedTuple

import torch
from torch import Tensor

from triselect.moe.balance import expert_load
from triselect.ops import operator


class Savings(NamedTuple):
    """Scalars, int64, on the device of the experts."""

    experts_before: Tensor
    experts_after: Tensor
    bytes_saved: Tensor
    assignments_changed: Tensor


def savings(before: Tensor, after: Tensor, num_experts: int, expert_bytes: int) -> Savings:
    """Count the experts whose weights a batch reads, before and after, and what goes elsewhere.

    Parameters
    ----------
    before, after : ``(T, K)`` int32 or int64
        Experts chosen by each token, by `grouped_topk` and by `limit_experts` for instance. -1 is
        padding.
    num_experts : int
        E.
    expert_bytes : int
        Bytes of one expert's weights.

    Returns
    -------
    Savings
        ``experts_before`` and ``experts_after``, the distinct experts in use; ``bytes_saved``, of
        those that are in use no more (negative where more are); ``assignments_changed``, the
        entries of `after` whose expert is not among the token's experts of `before`. Scalars,
        int64; nothing waits for the device.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name.

    Examples
    --------
    >>> before = torch.tensor([[0, 1], [0, 2], [3, 0]])
    >>> after = torch.tensor([[0, 1], [0, 1], [1, 0]])
    >>> savings(before, after, 4, 100)._asdict()
    {'experts_before': tensor(4), 'experts_after': tensor(2), 'bytes_saved': tensor(200), \
'assignments_changed': tensor(2)}
    """
    operator.must_be_int("num_experts", num_experts)
    operator.must_be_int("expert_bytes", expert_bytes)
    if expert_bytes < 0:
        raise ValueError(f"expert_bytes must be at least 0, got {expert_bytes}")
    for name, experts in (("before", before), ("after", after)):
        _validate(name, experts, num_experts)
    if before.shape != after.shape or before.device != after.device:
        raise ValueError(
            f"after must be {tuple(before.shape)} on {before.device} as before, "
            f"got {tuple(after.shape)} on {after.device}"
        )
    experts_before, experts_after = (
        (expert_load(experts, num_experts) > 0).sum() for experts in (before, after)
    )
    kept = (after[:, :, None] == before[:, None, :]).any(-1)
    changed = (after >= 0) & (after < num_experts) & ~kept
    return Savings(
        experts_before,
        experts_after,
        (experts_before - experts_after) * expert_bytes,
        changed.sum(),
    )


def _validate(name: str, experts: Tensor, num_experts: int) -> None:
    if not isinstance(experts, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(experts).__name__}")
    if experts.dim() != 2:
        raise ValueError(f"{name} must be (tokens, top_k), got shape {tuple(experts.shape)}")
    if experts.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32 or int64, got {experts.dtype}")
    if experts.is_cpu and not torch.compiler.is_compiling():
        operator.must_be_in_range(name, experts, -1, num_experts - 1, "-1 for padding")
