"""What `merge` launches: the two halves of a decode step, and of a chunk."""

import torch

from .lower import Case


def merge(queries: int, dtype: torch.dtype):
    from triselect.kernels.merge import triton

    out = torch.empty(1, queries, 32, 128, dtype=dtype)
    lse = torch.empty(1, queries, 32)
    return triton.merge(out, lse, out, lse)


CASES = [
    Case("decode bfloat16", lambda: merge(1, torch.bfloat16)),
    Case("chunk float32", lambda: merge(512, torch.float32)),
]
