"""What a call of a model says about its tokens: which are padding, and where they stand.

Values on a device are looked at only with a prompt: waiting for them at every decoded token would
cost more than they tell, since `generate` appends only ones and counts on.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def left_padding(
    mask: Any, columns: int, before: Sequence[int], shape: tuple[int, int]
) -> list[int]:
    """How many of the new tokens of each row are padding, all of them its first ones.

    `mask` has a column for each of the `columns` read before, of which `before` were padding in
    each row, and for each of the new ones; `shape` is the batch and the number of new ones.
    """
    batch, count = shape
    none = [0] * batch
    if mask is None:
        return none
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        what = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask must be (batch, tokens), 1 for tokens and 0 for padding: ESA is "
            f"causal of itself and takes no other mask, got {what}"
        )
    if mask.shape != (batch, columns + count):
        raise ValueError(
            f"attention_mask must be {(batch, columns + count)} for {columns} tokens in the cache "
            f"and {count} new ones, got {tuple(mask.shape)}"
        )
    if _would_wait(mask, columns, count):
        return none
    new = mask[:, columns:] != 0
    left = (new.cumsum(1) == 0).sum(1)
    whole = bool((left + new.sum(1) == count).all())
    found: list[int] = left.tolist()
    begun = [row for row, padding in enumerate(before) if padding < columns]
    if not whole or any(found[row] for row in begun):
        raise ValueError(
            "attention_mask must have zeros only on the left, before the first token of a row: ESA "
            "does not support padding on the right or between tokens "
            "(tokenizer.padding_side = 'left')"
        )
    return found


def must_count_on(
    positions: Any, columns: int, before: Sequence[int], padding: Sequence[int], count: int
) -> None:
    """Raises unless tokens follow each other, from the first token of a row or from its padding.

    Positions are ESA's own affair: others would be ignored.
    """
    if positions is None or _would_wait(positions, columns, count):
        return
    device = positions.device
    pads = torch.tensor(padding, device=device)[:, None]
    stored = columns - torch.tensor(before, device=device)[:, None]
    steps = torch.arange(count, device=device)
    for expected in (stored + steps - pads, columns + steps):
        if bool(((positions == expected) | (steps < pads)).all()):
            return
    raise ValueError(
        "position_ids must count on from the tokens in the cache: under ESA a token stands where "
        "it is in its row, and packed texts are not supported"
    )


def _would_wait(x: Tensor, columns: int, count: int) -> bool:
    return not x.is_cpu and count == 1 and columns > 0
