"""What `norm_add_norm` launches: rows that fit registers, of models and short ones, and longer."""

import torch

from .lower import Case


def rows(hidden: int, dtype: torch.dtype, placement: str = "branch"):
    from triselect.kernels.norm_add_norm import triton

    y, residual = torch.empty(2, 16, hidden, dtype=dtype)
    post_weight, next_weight = torch.empty(2, hidden, dtype=dtype)
    return triton.norm_add_norm(y, residual, post_weight, next_weight, 1e-5, placement)


CASES = [
    Case("5120 bfloat16", lambda: rows(5120, torch.bfloat16)),
    Case("7680 bfloat16, sum", lambda: rows(7680, torch.bfloat16, "sum")),
    Case("1024 float16", lambda: rows(1024, torch.float16)),
    Case("16384 float32", lambda: rows(16384, torch.float32)),
    Case("28672 bfloat16", lambda: rows(28672, torch.bfloat16)),
]
