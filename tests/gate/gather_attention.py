"""What a step of ESA launches on Llama-3-8B: decoding, a prefill chunk, other heads, pages."""

from unittest import mock

import torch

from .lower import Case


def selected(
    queries: int,
    *,
    batch: int = 1,
    dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    paged: bool = False,
    without: str = "combine",
):
    """2,048 selected tokens beside 128 initial ones, and a window of keys to be rotated.

    One kernel at a time, `without` the other: only one of them has a dot.
    """
    from triselect.kernels.gather_attention import triton

    q = torch.empty(batch, queries, 32, dim, dtype=dtype)
    cache = torch.empty(*((1024, 64) if paged else (batch, 16384)), 8, dim, dtype=dtype)
    index = torch.empty(batch, 2048, dtype=torch.int32)
    bounds = torch.empty(batch, dtype=torch.int32)
    angles = torch.empty(8192, dim // 2)
    table = torch.empty(batch, 256, dtype=torch.int32) if paged else None
    arguments = (index, 128, bounds, bounds, angles, angles, table, dim**-0.5)
    with mock.patch.object(triton, without):
        triton.selected_attention(q, q, cache, cache, *arguments)


def dense(queries: int):
    """All tokens of a cache, keys as they are."""
    from triselect.kernels.gather_attention import triton

    q = torch.empty(1, queries, 32, 128, dtype=torch.bfloat16)
    cache = torch.empty(1, 16384, 8, 128, dtype=torch.bfloat16)
    with mock.patch.object(triton, "combine"):
        triton.window_attention(q, cache, cache, None, None, None, None, None, 0.1)


CASES = [
    Case("decode", lambda: selected(1), tensor_cores=True),
    Case("decode 64 sequences", lambda: selected(1, batch=64), tensor_cores=True),
    Case("decode paged", lambda: selected(1, paged=True), tensor_cores=True),
    Case("decode 64 numbers", lambda: selected(1, dim=64), tensor_cores=True),
    Case("decode 256 numbers", lambda: selected(1, dim=256), tensor_cores=True),
    Case("decode float32", lambda: selected(1, dtype=torch.float32)),
    Case("decode all", lambda: dense(1), tensor_cores=True),
    Case("shares together", lambda: selected(1, without="attend")),
    Case("chunk", lambda: selected(512), tensor_cores=True),
    Case("chunk paged", lambda: selected(512, paged=True), tensor_cores=True),
    Case("chunk 64 numbers", lambda: selected(512, dim=64), tensor_cores=True),
    Case("chunk 256 numbers", lambda: selected(512, dim=256), tensor_cores=True),
    Case("chunk float32", lambda: selected(512, dtype=torch.float32)),
]
