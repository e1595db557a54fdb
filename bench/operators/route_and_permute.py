"""route_and_permute against its two halves apart, and against what engines compose."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

import triselect
from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.report import baselines
from triselect.report.routers import DEEPSEEK_V3, PANGU, PLAIN, Router, sample, tokens_of

from . import grouped_topk
from .permute import assert_permuted, by_sorting


def build(
    router: Router, tokens: int, dtype: torch.dtype, device: str, compiler: str | None
) -> Work:
    inputs = tokens_of(router, ROTATED * tokens, dtype, device).split(tokens)
    logits = inputs[0].clone()
    options, number = router.options(device), router.experts
    compose = baselines.composition(router, device)

    def fused(backend: str = "auto") -> tuple[Tensor, ...]:
        return triselect.route_and_permute(logits, backend=backend, **options)

    def apart() -> tuple[Tensor, ...]:
        routing = triselect.grouped_topk(logits, **options)
        return *routing, *triselect.permute(routing.experts, number)

    def composed() -> tuple[Tensor, ...]:
        weights, experts = compose(logits)
        return weights, experts, *by_sorting(experts, number)

    def verify(provider: str, result: tuple[Tensor, ...]) -> None:
        baselines.verify(router, logits, result[:2])
        assert_permuted(result[1], number, result[2:])

    calls: dict[str, Any] = {
        OURS: fused,
        "the two apart": apart,
        "eager": partial(fused, "eager"),
        "eager comp.": composed,
    }
    return Work(
        calls=calls,
        unavailable={},
        refresh=lambda i: logits.copy_(inputs[i % ROTATED]),
        verify=verify,
        bytes=logits.nbytes + sum(tensor.nbytes for tensor in fused()),
        data=sample().source,
    )


def case(router: Router, tokens: int, dtype: torch.dtype) -> Case:
    sizes = {"tokens": tokens, "experts": router.experts}
    return Case(router.label, sizes, dtype, partial(build, router, tokens, dtype))


CASES = [
    case(router, tokens, dtype)
    for tokens in (256, 4096, 16, 1, 1024, 16384)
    for router, dtype in ((PANGU, torch.bfloat16), (DEEPSEEK_V3, torch.float32))
]
TINY = [case(PANGU, 4, torch.bfloat16), case(DEEPSEEK_V3, 4, torch.float32)]


def small(router: Router, dtype: torch.dtype, tokens: int) -> Small:
    name, inputs, call = grouped_topk.small(router, dtype, tokens, of=triselect.route_and_permute)
    return Small(f"{name}, {tokens} tokens", inputs, call)


SMALL = [
    small(PANGU, torch.bfloat16, 5),
    small(DEEPSEEK_V3, torch.float32, 5),
    small(PLAIN, torch.float32, 70),
    small(PLAIN, torch.float32, 1100),  # more than one launch routes
]
