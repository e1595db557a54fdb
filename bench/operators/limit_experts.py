"""limit_experts against the same written in PyTorch, as vllm-ascend does for Pangu Pro MoE."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

import triselect
from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.report.routers import DEEPSEEK_V3, PANGU, Router, sample, tokens_of

from . import grouped_topk

BUDGETS = {PANGU.name: 5, DEEPSEEK_V3.name: 16}  # experts kept of each group


def merrouter(logits: Tensor, groups: int, budget: int, scale: Tensor) -> tuple[Tensor, Tensor]:
    """One of every group, after the most-voted of each group were kept."""
    tokens, size = len(logits), logits.shape[1] // groups
    scores = logits.softmax(-1, dtype=torch.float32).view(tokens, groups, size)
    votes = torch.zeros(groups, size, device=logits.device)
    best = scores.argmax(-1).t()
    votes.scatter_add_(1, best, votes.new_ones(groups, tokens))
    kept = torch.zeros_like(votes, dtype=torch.bool)
    kept.scatter_(1, votes.argsort(dim=-1, descending=True, stable=True)[:, :budget], True)
    weights, local = scores.masked_fill(~kept, -1.0).max(-1)
    experts = local + size * torch.arange(groups, device=logits.device)
    return weights * scale[experts], experts.int()


def build(
    router: Router, tokens: int, dtype: torch.dtype, device: str, compiler: str | None
) -> Work:
    inputs = tokens_of(router, ROTATED * tokens, dtype, device).split(tokens)
    logits = inputs[0].clone()
    options, budget = router.options(device), BUDGETS[router.name]

    def limited(backend: str = "auto") -> tuple[Tensor, Tensor]:
        found = triselect.limit_experts(logits, budget=budget, backend=backend, **options)
        return found.weights, found.experts

    calls: dict[str, Any] = {OURS: limited, "eager": partial(limited, "eager")}
    unavailable = {}
    if router is PANGU:
        scale = options["expert_scale"]
        calls["MERRouter"] = lambda: merrouter(logits, router.groups, budget, scale)
    else:
        unavailable["MERRouter"] = "it takes one of every group"

    def verify(provider: str, result: tuple[Tensor, Tensor]) -> None:
        weights, experts = limited("eager")
        # A bias makes keys whose last bit may differ between backends: a token in a thousand may.
        same = (experts == result[1]).all(-1)
        assert int((~same).sum()) <= (len(same) // 1000 if router.bias else 0)
        torch.testing.assert_close(result[0][same], weights[same], rtol=1e-5, atol=1e-7)

    return Work(
        calls=calls,
        unavailable=unavailable,
        refresh=lambda i: logits.copy_(inputs[i % ROTATED]),
        verify=verify,
        bytes=2 * logits.nbytes + sum(tensor.nbytes for tensor in limited()),
        data=sample().source,
    )


def case(router: Router, tokens: int, dtype: torch.dtype) -> Case:
    sizes = {"tokens": tokens, "experts": router.experts, "budget": BUDGETS[router.name]}
    return Case(router.label, sizes, dtype, partial(build, router, tokens, dtype))


CASES = [
    case(router, tokens, dtype)
    for tokens in (16, 256, 4096)
    for router, dtype in ((PANGU, torch.bfloat16), (DEEPSEEK_V3, torch.float32))
]
TINY = [case(PANGU, 4, torch.bfloat16), case(DEEPSEEK_V3, 4, torch.float32)]


def small(router: Router, budget: int, per_group: bool) -> Small:
    limited = partial(triselect.limit_experts, budget=budget, per_group=per_group)
    plain = grouped_topk.small(router, torch.float32, 19, of=limited)
    return Small(f"{router.name}, {budget} {'of each' if per_group else 'in all'}", *plain[1:])


SMALL = [
    small(PANGU, 5, per_group=True),
    small(PANGU, 30, per_group=False),
    small(DEEPSEEK_V3, 16, per_group=True),
]
