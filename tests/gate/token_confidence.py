"""What `token_confidence` launches: pieces of a row and their merging, greedy and drawn."""

import torch

from .lower import Case


def confidence(rows: int, tokens: int, dtype: torch.dtype, score: str, drawn: bool = False):
    from triselect.kernels.token_confidence import triton

    logits = torch.empty(rows, tokens, dtype=dtype)
    each = torch.zeros(3, rows, dtype=torch.int64).unbind() if drawn else (None,) * 3
    asked = torch.ones(rows, dtype=torch.bool)
    return triton.token_confidence(logits, asked, *each, None, 0.7, score, tokens - 1, 0)


# `merge` reads seven numbers of each piece, side by side with those of others: no wide loads.
CASES = [
    Case("one piece", lambda: confidence(8, 4096, torch.bfloat16, "margin")),
    Case(
        "152064 tokens",
        lambda: confidence(32, 152064, torch.bfloat16, "max_prob"),
        wide_loads=False,
    ),
    Case(
        "152064 tokens, float32",
        lambda: confidence(32, 152064, torch.float32, "neg_entropy"),
        wide_loads=False,
    ),
    Case("drawn, one piece", lambda: confidence(8, 4096, torch.bfloat16, "max_prob", True)),
    Case(
        "drawn, 126464 tokens",
        lambda: confidence(32, 126464, torch.bfloat16, "max_prob", True),
        wide_loads=False,
    ),
]
