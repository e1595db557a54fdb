"""What `finalize` launches: Pangu Pro's sizes, plain and with all that can be added."""

import torch

from .lower import Case


def finalize(
    tokens: int,
    dtype: torch.dtype,
    *,
    top_k: int = 8,
    bias: torch.dtype | None = None,
    residuals: int = 0,
):
    from triselect.kernels.finalize import triton

    slot_of = torch.empty(tokens, top_k, dtype=torch.int32)
    residual = torch.empty(tokens, 5120, dtype=dtype)
    return triton.finalize(
        torch.empty(tokens * top_k, 5120, dtype=dtype),
        torch.empty(tokens, top_k),
        slot_of,
        None if bias is None else slot_of,
        None if bias is None else torch.empty(64, 5120, dtype=bias),
        residual if residuals else None,
        residual if residuals > 1 else None,
    )


CASES = [
    Case("a token", lambda: finalize(1, torch.bfloat16, residuals=1)),
    Case("many tokens", lambda: finalize(4096, torch.bfloat16)),
    Case("float32, two residuals", lambda: finalize(4096, torch.float32, residuals=2)),
    Case("top 10, bias", lambda: finalize(4096, torch.float16, top_k=10, bias=torch.float16)),
    Case("bias in float32", lambda: finalize(16, torch.bfloat16, bias=torch.float32)),
]
