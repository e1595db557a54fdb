"""What `spawn` launches: a program for each sequence, its window one tile."""

import torch

from .lower import Case


def spawned(batch: int, length: int, block: int, window: int, k: int, **options):
    from triselect.kernels.spawn import triton

    numbers = torch.zeros(batch, length, dtype=torch.int32)
    floats = torch.zeros(batch, length)
    each = torch.zeros(batch, dtype=torch.int32)
    options = {"factor": 0.0, "attention": "full", "shift": False} | options
    factor, attention, shift = options.values()
    return triton.spawn(
        *(numbers, numbers, floats, floats, each, each, None, block, window, k, 100, 101),
        *(0.9, factor, 1, block, attention, shift),
    )


# Bytes of open positions, and windows that begin anywhere.
CASES = [
    Case("4 blocks of 32", lambda: spawned(1, 512, 32, 128, 4, shift=True), wide_loads=False),
    Case("8 blocks of 64", lambda: spawned(16, 2048, 64, 512, 16), wide_loads=False),
    Case(
        "3 blocks of 48, by rank", lambda: spawned(1, 480, 48, 144, 4, factor=1.0), wide_loads=False
    ),
    Case(
        "a block of 2048",
        lambda: spawned(1, 2048, 2048, 2048, 4, factor=1.0, attention="bidirectional"),
        wide_loads=False,
    ),
]
