"""What `limit_experts` launches: for a decoding batch one kernel, for more three."""

import torch

from .grouped_topk import MOGE, V3, arguments
from .lower import Case


def limited(tokens: int, budget: int, *args, per_group=True, **options):
    from triselect.kernels.limit_experts import triton

    return triton.limit_experts(*arguments(*args, tokens=tokens, **options), budget, per_group)


CASES = [
    Case("pangu-pro bfloat16, 64 tokens", lambda: limited(64, 5, 64, 8, torch.bfloat16, **MOGE)),
    Case(
        "pangu-pro bfloat16, 1024 tokens", lambda: limited(1024, 5, 64, 8, torch.bfloat16, **MOGE)
    ),
    Case(
        "deepseek-v3 float32, 1024 tokens",
        lambda: limited(1024, 100, 256, 8, torch.float32, per_group=False, **V3),
    ),
    Case(
        "experts-4096 float32, 16384 tokens",
        lambda: limited(16384, 1000, 4096, 16, torch.float32),
    ),
]
