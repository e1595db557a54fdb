"""What `select_tokens` launches: one program a short row, pieces of a long one, wider windows."""

import torch

from .lower import Case


def select(rows: int, tokens: int, k: int, dtype: torch.dtype, proximity: int = 0):
    from triselect.kernels.select_tokens import triton

    start = torch.full((rows,), 128)
    end = start.int() + tokens // 2
    scores = torch.empty(rows, tokens, dtype=dtype)
    return triton.select_tokens(scores, k, proximity, start, end)


# Four scores of 16 bits for each of 512 lanes (gfx942) are 64 bits; a window begins anywhere.
CASES = [
    Case("131072 tokens", lambda: select(1, 131072, 2048, torch.float32)),
    Case(
        "131072 tokens, bfloat16",
        lambda: select(16, 131072, 2048, torch.bfloat16),
        wide_loads=False,
    ),
    Case("4096 tokens", lambda: select(64, 4096, 512, torch.float32)),
    Case(
        "131072 tokens, proximity 1",
        lambda: select(1, 131072, 2048, torch.float32, 1),
        wide_loads=False,
    ),
]
