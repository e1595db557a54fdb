"""What training launches `grouped_topk_backward` for."""

import torch

from .lower import Case


def backward(
    experts: int,
    top_k: int,
    dtype: torch.dtype,
    *,
    scoring_func="softmax",
    renormalize=False,
    scale=False,
):
    from triselect.kernels.grouped_topk import triton

    return triton.grouped_topk_backward(
        torch.empty(64, top_k),
        torch.empty(64, experts, dtype=dtype),
        torch.empty(64, top_k, dtype=torch.int32),
        scoring_func,
        renormalize,
        1.0,
        torch.empty(experts) if scale else None,
    )


MOGE = {"scale": True}
SIGMOID = {"scoring_func": "sigmoid", "renormalize": True}

CASES = [
    # A thread has four logits, which are 64 bits in bfloat16.
    Case("pangu-pro bfloat16", lambda: backward(64, 8, torch.bfloat16, **MOGE), wide_loads=False),
    # Without softmax only the chosen logits are read, one by one.
    Case(
        "deepseek-v3 float32", lambda: backward(256, 8, torch.float32, **SIGMOID), wide_loads=False
    ),
    Case("experts-896 float32", lambda: backward(896, 16, torch.float32, renormalize=True)),
]
