"""What a step of ESA launches on Llama-3-8B: decoding, a prefill chunk, other heads, pages."""

import torch

from .lower import Case


def selected(
    batch: int,
    queries: int,
    *,
    dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    paged: bool = False,
):
    """2,048 selected tokens beside 128 initial ones, and a window of keys to be rotated."""
    from triselect.kernels.gather_attention import triton

    q = torch.empty(batch, queries, 32, dim, dtype=dtype)
    cache = torch.empty(*((1024, 64) if paged else (batch, 16384)), 8, dim, dtype=dtype)
    bounds = torch.empty(batch, dtype=torch.int32)
    angles = torch.empty(8192, dim // 2)
    return triton.selected_attention(
        q,
        q,
        cache,
        cache,
        torch.empty(batch, 2048, dtype=torch.int32),
        128,
        bounds,
        bounds,
        angles,
        angles,
        torch.empty(batch, 256, dtype=torch.int32) if paged else None,
        dim**-0.5,
    )


def dense(queries: int):
    """All tokens of a cache, keys as they are."""
    from triselect.kernels.gather_attention import triton

    q = torch.empty(1, queries, 32, 128, dtype=torch.bfloat16)
    cache = torch.empty(1, 16384, 8, 128, dtype=torch.bfloat16)
    return triton.window_attention(q, cache, cache, None, None, None, None, None, 0.1)


CASES = [
    Case("decode", lambda: selected(1, 1), tensor_cores=True),
    Case("decode 16 sequences", lambda: selected(16, 1), tensor_cores=True),
    Case("decode paged", lambda: selected(1, 1, paged=True), tensor_cores=True),
    Case("decode 64 numbers", lambda: selected(1, 1, dim=64), tensor_cores=True),
    Case("decode 256 numbers", lambda: selected(1, 1, dim=256), tensor_cores=True),
    Case("decode float32", lambda: selected(1, 1, dtype=torch.float32)),
    Case("decode all", lambda: dense(1), tensor_cores=True),
    Case("chunk", lambda: selected(1, 512), tensor_cores=True),
    Case("chunk paged", lambda: selected(1, 512, paged=True), tensor_cores=True),
    Case("chunk 64 numbers", lambda: selected(1, 512, dim=64), tensor_cores=True),
    Case("chunk 256 numbers", lambda: selected(1, 512, dim=256), tensor_cores=True),
    Case("chunk float32", lambda: selected(1, 512, dtype=torch.float32)),
]
