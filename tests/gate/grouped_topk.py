"""What models launch `grouped_topk` for."""

import torch

from .lower import Case


def arguments(
    experts: int, top_k: int, dtype: torch.dtype, *, tokens=64, bias=False, scale=False, **options
):
    """All arguments of the operator."""
    return (
        torch.empty(tokens, experts, dtype=dtype),
        top_k,
        groups := options.get("num_expert_group", 1),
        options.get("topk_group", groups),
        options.get("balanced", False),
        options.get("scoring_func", "softmax"),
        options.get("group_score", "max"),
        torch.empty(experts) if bias else None,
        options.get("renormalize", False),
        1.0,
        torch.empty(experts) if scale else None,
    )


def route(*args, **options):
    from triselect.kernels.grouped_topk import triton

    return triton.grouped_topk(*arguments(*args, **options))


SIGMOID = {"scoring_func": "sigmoid", "bias": True, "renormalize": True}
V3 = SIGMOID | {"num_expert_group": 8, "topk_group": 4, "group_score": "top2_sum"}
MOGE = {"num_expert_group": 8, "balanced": True, "scale": True}

CASES = [
    Case("pangu-pro bfloat16", lambda: route(64, 8, torch.bfloat16, **MOGE)),
    Case("deepseek-v3 float32", lambda: route(256, 8, torch.float32, **V3)),
    Case("kimi-k2 float32", lambda: route(384, 8, torch.float32, **SIGMOID)),
    # Ten experts to a group of 16 lanes: no vector of four starts at a multiple of 16 bytes.
    Case("moge-80 float32", lambda: route(80, 8, torch.float32, **MOGE), wide_loads=False),
    Case("experts-896 float32", lambda: route(896, 16, torch.float32)),
]
