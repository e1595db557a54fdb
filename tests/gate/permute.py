"""What `permute` launches: in one launch what a decoding batch needs, in two what a prompt does."""

import torch

from .lower import Case


def permute(tokens: int, top_k: int, experts: int, dtype: torch.dtype = torch.int32):
    from triselect.kernels.permute import triton

    return triton.permute(torch.empty(tokens, top_k, dtype=dtype), experts)


# Assignments come four bytes at a time, and so few that latency counts, not how they come.
CASES = [
    Case("64 experts, 256 tokens", lambda: permute(256, 8, 64), wide_loads=False),
    Case("256 experts, 16384 tokens", lambda: permute(16384, 8, 256), wide_loads=False),
    Case("384 experts, int64", lambda: permute(256, 8, 384, torch.int64), wide_loads=False),
    Case("4096 experts, 16384 tokens", lambda: permute(16384, 16, 4096), wide_loads=False),
]
