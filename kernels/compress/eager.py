"""Compression of queries or keys in plain PyTorch: any device. Same names as `reference.py`."""

import torch
from torch import Tensor
from triselect.kernels.shared.fold import fold


def compress(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slots: Tensor | None,
    values: Tensor,
    scale: Tensor | None,
) -> None:
    """Writes into `values` ``(..., E)`` and `scale` ``(...)`` what x ``(..., H, D)`` becomes."""
    folded = fold(x, weight.shape[1] // x.shape[-1]).reshape(-1, weight.shape[1]).float()
    y = torch.nn.functional.linear(folded, weight.float(), None if bias is None else bias.float())
    if scale is None:
        write(values.view(-1, values.shape[-1]), slots, y.to(values.dtype))
        return
    limit = 127 if values.dtype is torch.int8 else 448
    largest = y.abs().amax(1) / limit
    s = torch.where(largest.isfinite(), largest, torch.nan)
    # A scale so small that it has few digits left may be too small.
    y = torch.where((s > 0)[:, None], y / s[:, None], 0).clamp(-limit, limit)
    if values.dtype is torch.int8:
        y = y.round()
    write(values.view(-1, values.shape[-1]), slots, y.to(values.dtype))
    write(scale.view(-1), slots, s)


def write(rows: Tensor, slots: Tensor | None, new: Tensor) -> None:
    """Writes each new row at its slot, none at -1; nothing waits for the values of the slots."""
    if slots is None:
        rows.copy_(new)
        return
    if not len(new) or not len(rows):
        return
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32}[rows.itemsize]
    rows, new = rows.view(bits), new.view(bits)  # 8-bit floats cannot be indexed everywhere
    slots = slots.flatten()
    there = (slots >= 0) & (slots < len(rows))
    # What must not be written repeats one that is, or what row 0 holds if none is.
    source = torch.where(there, torch.arange(len(slots), device=slots.device), there.int().argmax())
    at = slots[source].clamp(0, len(rows) - 1)
    rows.index_put_((at,), torch.where(there.any(), new[source], rows[at]))
