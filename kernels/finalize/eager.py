"""What experts say about a token in plain PyTorch, and its gradients.

Same names as `reference.py`. Slots and experts out of range are skipped, as on a device.
"""

import torch
from torch import Tensor

COLUMNS = 1024  # of the gradients at a time: what is computed in float32 stays small beside them


def finalize(
    rows: Tensor,
    weights: Tensor,
    slot_of: Tensor,
    experts: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    residual2: Tensor | None,
) -> Tensor:
    """``out (T, H)`` of rows' dtype."""
    out = rows.new_zeros((slot_of.shape[0], rows.shape[1]), dtype=torch.float32)
    there = _there(rows, slot_of, experts, bias)
    if rows.shape[0] and (bias is None or bias.shape[0]):  # else there is nothing to look up
        for k in range(slot_of.shape[1]):
            said = rows[slot_of[:, k].where(there[:, k], 0)].float()
            if bias is not None and experts is not None:
                said = said + bias[experts[:, k].where(there[:, k], 0)]
            out = out + (weights[:, k, None] * said).where(there[:, k, None], 0)
    for skipped in (residual, residual2):
        if skipped is not None:
            out = out + skipped
    return out.to(rows.dtype)


def finalize_out(*args: Tensor) -> None:
    """`finalize` of all but the last, written into that."""
    args[-1].copy_(finalize(*args[:-1]))


def gradients(
    grad: Tensor,
    rows: Tensor,
    weights: Tensor,
    slot_of: Tensor,
    experts: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of rows, weights and bias, from that of the output.

    A row is of one assignment at most, so that its gradient is looked up and not added up, and a
    weight's is a product with the row where it lies. No sum's order is left to chance.
    """
    (tokens, top_k), (count, hidden) = slot_of.shape, rows.shape
    there = _there(rows, slot_of, experts, bias)
    weights = weights.where(there, 0)
    assignment = torch.arange(tokens * top_k, device=rows.device).view(tokens, top_k)
    # Which assignment is a row's; one more row takes those of the skipped.
    owner = assignment.new_full((count + 1,), -1)
    owner = owner.scatter(0, slot_of.where(there, count).flatten().long(), assignment.flatten())
    owner = owner[:count]
    owned, token = owner >= 0, (owner // top_k).clamp(min=0)
    d_rows = torch.zeros_like(rows, memory_format=torch.contiguous_format)
    d_weights = torch.zeros_like(weights)
    if tokens * top_k and count:
        factor = weights.flatten()[owner.clamp(min=0)][:, None]
        products = grad.new_zeros(count, dtype=torch.float32)
        for first in range(0, hidden, COLUMNS):
            part = slice(first, first + COLUMNS)
            g = grad[:, part].float()[token].where(owned[:, None], 0)
            d_rows[:, part] = (factor * g).where(owned[:, None], 0)
            products = products + (g * rows[:, part]).sum(1)
        d_weights = products[slot_of.where(there, 0)].where(there, 0)
    if bias is None or experts is None:
        return d_rows, d_weights, None
    columns = torch.arange(bias.shape[0], device=bias.device)
    of_experts = weights[..., None].where(experts[..., None] == columns, 0).sum(1)  # (T, E)
    d_bias = of_experts.T @ grad.float()
    if bias.shape[0]:
        said = grad.float() @ bias.float().T
        d_weights = d_weights + said.gather(1, experts.where(there, 0).long()).where(there, 0)
    return d_rows, d_weights, d_bias.to(bias.dtype)


def _there(rows: Tensor, slot_of: Tensor, experts: Tensor | None, bias: Tensor | None) -> Tensor:
    """Which assignments say something, ``(T, K)``."""
    there = (slot_of >= 0) & (slot_of < rows.shape[0])
    if bias is not None and experts is not None:
        there = there & (experts >= 0) & (experts < bias.shape[0])
    return there
