"""What `compress` launches: queries and keys of a step, of a chunk, of many tokens; 8 bits."""

import torch

from .lower import Case

EIGHT_BIT_FLOATS = dict.fromkeys(("sm_75", "sm_80"), "8-bit floats come with sm_89")


def compress(
    tokens: int,
    heads: int,
    out: torch.dtype = torch.bfloat16,
    *,
    dtype: torch.dtype = torch.bfloat16,
    compressed: int = 128,
):
    """For Llama-3-8B: 32 query heads or 8 key heads of 128 numbers; keys go to their slots."""
    from triselect.kernels.compress import triton

    eight = out in (torch.int8, torch.float8_e4m3fn)
    triton.compress(
        torch.empty(tokens, heads, 128, dtype=dtype),
        torch.empty(compressed, 8 * 128, dtype=dtype),
        torch.empty(compressed, dtype=dtype),
        torch.empty(tokens, dtype=torch.int64) if heads == 8 else None,
        torch.empty(tokens, compressed, dtype=out),
        torch.empty(tokens) if eight else None,
    )


# Few tokens are shared out among programs, so that some have little to load at a time.
CASES = [
    Case("queries of a step", lambda: compress(1, 32), wide_loads=False, tensor_cores=True),
    Case("keys of a step, int8", lambda: compress(1, 8, torch.int8), tensor_cores=True),
    Case(
        "keys of a step, float8",
        lambda: compress(1, 8, torch.float8_e4m3fn),
        tensor_cores=True,
        unsupported=EIGHT_BIT_FLOATS,
    ),
    Case("keys of a chunk", lambda: compress(512, 8), wide_loads=False, tensor_cores=True),
    Case("queries of many tokens", lambda: compress(8192, 32), tensor_cores=True),
    Case("queries, 8 heads to a key", lambda: compress(8192, 64), tensor_cores=True),
    Case(
        "int8, 512 numbers",
        lambda: compress(8192, 8, torch.int8, compressed=512),
        tensor_cores=True,
    ),
]
