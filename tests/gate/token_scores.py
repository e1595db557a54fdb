"""What `token_scores` launches: the scores of one query, and both passes of a chunk of them."""

import torch

from .lower import Case

EIGHT_BIT_FLOATS = dict.fromkeys(("sm_75", "sm_80"), "8-bit floats come with sm_89")


def token_scores(
    chunk: int,
    dtype: torch.dtype = torch.bfloat16,
    keys: torch.dtype | None = None,
    *,
    tokens: int = 65536,
    size: int | None = None,
    compressed: int = 128,
    heads: tuple[int, ...] = (),
):
    """With keys in blocks of a `size`, or of all `heads`: of the queries, of the keys."""
    from triselect.kernels.token_scores import triton

    q_heads, k_heads = heads[:1], heads[1:]
    rows = (1, tokens) if size is None else (tokens // size, size)
    k = torch.empty(*rows, *k_heads, compressed, dtype=keys or dtype)
    return triton.token_scores(
        torch.empty(1, chunk, *q_heads, compressed, dtype=dtype),
        k,
        None if keys is None else torch.empty(rows),
        torch.zeros(1, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32),
        None,
        None if size is None else torch.empty(1, tokens // size, dtype=torch.int32),
    )


CASES = [
    Case("decode bfloat16", lambda: token_scores(1)),
    Case("decode int8 paged", lambda: token_scores(1, keys=torch.int8, size=64)),
    Case(
        "decode float8",
        lambda: token_scores(1, keys=torch.float8_e4m3fn),
        unsupported=EIGHT_BIT_FLOATS,
    ),
    Case("decode exact", lambda: token_scores(1, heads=(32, 8))),
    Case("chunk bfloat16", lambda: token_scores(512), tensor_cores=True),
    Case(
        "chunk int8 paged",
        lambda: token_scores(512, torch.float16, torch.int8, size=64),
        tensor_cores=True,
    ),
    Case("chunk exact", lambda: token_scores(512, heads=(32, 8)), tensor_cores=True),
    Case("chunk float32", lambda: token_scores(512, torch.float32)),
    Case("chunk of 4", lambda: token_scores(4), tensor_cores=True),
]
