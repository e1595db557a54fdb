"""permute against a permutation by torch.sort, as one writes it without an operator for it."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

import triselect
from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.report.routers import DEEPSEEK_V3, PANGU, Router, sample, tokens_of


def by_sorting(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows' tokens, assignments' rows, and where experts begin; no padding."""
    ordered, order = experts.flatten().sort(stable=True)
    source = order // experts.shape[1]
    slot_of = torch.empty_like(order)
    slot_of[order] = torch.arange(len(order), device=order.device)
    experts_and_end = torch.arange(num_experts + 1, device=order.device, dtype=experts.dtype)
    return source, slot_of.view(experts.shape), torch.searchsorted(ordered, experts_and_end)


def assert_permuted(experts: Tensor, num_experts: int, got: tuple[Tensor, ...]) -> None:
    """`got` is the one stable permutation; shapes of single fields and dtypes are free."""
    expected = triselect.permute(experts, num_experts, backend="eager")
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.flatten().int(), other.flatten())


def build(router: Router, tokens: int, device: str, compiler: str | None) -> Work:
    logits = tokens_of(router, ROTATED * tokens, device=device)
    inputs = router(logits).experts.split(tokens)
    experts = inputs[0].clone()
    number = router.experts
    calls: dict[str, Any] = {
        OURS: lambda: triselect.permute(experts, number),
        "eager": lambda: triselect.permute(experts, number, backend="eager"),
        "torch.sort": lambda: by_sorting(experts, number),
    }
    result = calls[OURS]()
    return Work(
        calls=calls,
        unavailable={},
        refresh=lambda i: experts.copy_(inputs[i % ROTATED]),
        verify=lambda provider, result: assert_permuted(experts, number, result),
        bytes=experts.nbytes + sum(tensor.nbytes for tensor in result),
        data=f"experts of {sample().source}",
    )


def case(router: Router, tokens: int) -> Case:
    sizes = {"tokens": tokens, "experts": router.experts, "top_k": router.top_k}
    return Case(router.label, sizes, torch.int32, partial(build, router, tokens))


CASES = [
    case(router, tokens) for tokens in (16384, 256, 4096, 1, 16) for router in (PANGU, DEEPSEEK_V3)
]
TINY = [case(PANGU, 4)]


def small(name: str, tokens: int, top_k: int, num_experts: int, dtype: torch.dtype) -> Small:
    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randint(-1, num_experts, (tokens, top_k), generator=generator).to(dtype)]

    def call(experts: Tensor, *, backend: str = "auto") -> triselect.Permutation:
        return triselect.permute(experts, num_experts, backend=backend)

    return Small(name, inputs, call)


SMALL = [
    small("a few tokens", 5, 8, 64, torch.int32),
    small("many tokens", 700, 8, 80, torch.int64),
]
