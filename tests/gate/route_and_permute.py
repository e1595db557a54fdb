"""What models launch `route_and_permute` for: a decoding batch, a large one, a prompt."""

import torch

from .grouped_topk import MOGE, V3, arguments
from .lower import Case


def fused(tokens: int, *args, **options):
    from triselect.kernels.route_and_permute import triton

    return triton.route_and_permute(*arguments(*args, tokens=tokens, **options))


CASES = [
    Case("pangu-pro bfloat16, 64 tokens", lambda: fused(64, 64, 8, torch.bfloat16, **MOGE)),
    Case("pangu-pro bfloat16, 1024 tokens", lambda: fused(1024, 64, 8, torch.bfloat16, **MOGE)),
    Case("deepseek-v3 float32, 1024 tokens", lambda: fused(1024, 256, 8, torch.float32, **V3)),
    # The second launch only reads assignments, four bytes at a time.
    Case(
        "deepseek-v3 float32, 16384 tokens",
        lambda: fused(16384, 256, 8, torch.float32, **V3),
        wide_loads=False,
    ),
]
