"""What models launch `table_route` for: PanGu-Sigma, hash layers, DeepSeek-V4."""

import torch

from .lower import Case


def route(
    experts: int,
    top_k: int,
    *,
    groups=1,
    table=True,
    scoring_func=None,
    ids=torch.int32,
    logits=torch.bfloat16,
):
    from triselect.kernels.table_route import triton

    return triton.table_route(
        torch.empty(4096, dtype=ids),
        torch.empty(1000, top_k, dtype=ids) if table else None,
        experts,
        torch.empty(4096, dtype=ids) if groups > 1 else None,
        groups,
        torch.empty(4096, experts, dtype=logits) if scoring_func else None,
        scoring_func or "softmax",
        scoring_func is not None,
        1.0,
        top_k,
        0,
    )


CASES = [
    # A row of the table is all that a token reads, and rows are anywhere.
    Case("pangu-sigma", lambda: route(640, 1, groups=4), wide_loads=False),
    Case("hash", lambda: route(64, 2, table=False), wide_loads=False),
    Case("deepseek-v4", lambda: route(256, 6, scoring_func="sqrt_softplus"), wide_loads=False),
    Case(
        "softmax",
        lambda: route(256, 8, scoring_func="softmax", ids=torch.int64, logits=torch.float32),
    ),
]
