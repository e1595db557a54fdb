"""What `grouped_swiglu` launches for experts as Pangu Pro's: few rows for each, and many."""

import torch

from .lower import Case

HIDDEN, INNER, EXPERTS, TOP_K = 5120, 1344, 64, 8


def weight(n: int, k: int, stored: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    scale = None
    if stored is torch.int8:
        scale = torch.empty(EXPERTS, n)
    elif stored is torch.float8_e4m3fn:
        scale = torch.empty(EXPERTS, -(-n // 128), -(-k // 128))
    return torch.empty(EXPERTS, n, k, dtype=stored), scale


def up(
    tokens: int,
    dtype: torch.dtype = torch.bfloat16,
    stored: torch.dtype | None = None,
    *,
    hidden: int = HIDDEN,
):
    from triselect.kernels.grouped_swiglu import triton

    w, scale = weight(2 * INNER, hidden, stored or dtype)
    rows = torch.empty(tokens, hidden, dtype=dtype)
    offsets = torch.empty(EXPERTS + 1, dtype=torch.int32)
    source = torch.empty(tokens * TOP_K, dtype=torch.int32)
    return triton.grouped_swiglu_up(rows, w, offsets, source, scale)


def down(
    tokens: int,
    dtype: torch.dtype = torch.bfloat16,
    stored: torch.dtype | None = None,
    *,
    part: slice = slice(None),
):
    """By a `part` of each expert's rows of weights."""
    from triselect.kernels.grouped_swiglu import triton

    w, scale = weight(HIDDEN, INNER, stored or dtype)
    h = torch.empty(tokens * TOP_K, INNER, dtype=dtype)
    offsets = torch.empty(EXPERTS + 1, dtype=torch.int32)
    return triton.grouped_swiglu_down(h, w[:, part], offsets, scale)


CASES = [
    Case("up of one token", lambda: up(1), tensor_cores=True),
    Case("up of one token float32", lambda: up(1, torch.float32)),
    Case("up of 64 tokens", lambda: up(64), tensor_cores=True),
    Case("up of 64 tokens float32", lambda: up(64, torch.float32)),
    Case("up of 64 tokens int8", lambda: up(64, stored=torch.int8), tensor_cores=True),
    Case("up of 64 tokens float8", lambda: up(64, stored=torch.float8_e4m3fn), tensor_cores=True),
    Case("up of 256 tokens", lambda: up(256), tensor_cores=True),
    Case("up of 4096 tokens", lambda: up(4096), tensor_cores=True),
    Case("up of 4096 tokens float32", lambda: up(4096, torch.float32)),
    Case(
        "up of 4096 tokens int8",
        lambda: up(4096, torch.float16, torch.int8),
        tensor_cores=True,
    ),
    Case(
        "up of 4096 tokens float8",
        lambda: up(4096, stored=torch.float8_e4m3fn),
        tensor_cores=True,
    ),
    Case("up of odd sizes", lambda: up(64, hidden=HIDDEN - 1), wide_loads=False, tensor_cores=True),
    Case(
        "up of 4096 tokens of odd sizes",
        lambda: up(4096, hidden=HIDDEN - 1),
        wide_loads=False,
        tensor_cores=True,
    ),
    Case("down of 64 tokens", lambda: down(64, torch.float16), tensor_cores=True),
    Case(
        "down of 64 tokens in parts",
        lambda: down(64, stored=torch.float8_e4m3fn, part=slice(2560)),
        tensor_cores=True,
    ),
    Case("down of 4096 tokens", lambda: down(4096), tensor_cores=True),
    Case("down of 4096 tokens int8", lambda: down(4096, stored=torch.int8), tensor_cores=True),
]
