"""grouped_topk on a device: the routers, sizes and rivals of bench_grouped_topk."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import triselect
from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.report import baselines
from triselect.report.providers import SHORT, providers
from triselect.report.routers import DEEPSEEK_V3, OTHERS, PANGU, Router, sample, tokens_of

WANTED = (OURS, "eager", "composition", "compiled", "selection")
FLASHINFER = "flashinfer"


def build(
    router: Router, tokens: int, dtype: torch.dtype, device: str, compiler: str | None
) -> Work:
    inputs = tokens_of(router, ROTATED * tokens, dtype, device).split(tokens)
    logits = inputs[0].clone()
    compiled = compiled_composition(router, device, compiler) if compiler else None
    who = providers(router, logits, compiler=compiler, compiled=compiled)
    calls = {name: who.calls[name] for name in WANTED if name in who.calls}
    unavailable = {name: who.unavailable[name] for name in WANTED if name in who.unavailable}
    if compiler is None:
        unavailable["compiled"] = "there was no time to compile it"
    if router == DEEPSEEK_V3 and dtype == torch.float32:
        try:
            call = flashinfer(router, logits)
            baselines.verify(router, logits, call())
        except Exception as error:  # it may be absent, refuse this GPU, or mean something else
            unavailable[FLASHINFER] = str(error).strip().split("\n", 1)[0]
        else:
            calls[FLASHINFER] = call
    result: Any = calls[OURS]()

    def verify(provider: str, result: Any) -> None:
        if provider == SHORT["selection"]:
            baselines.verify_selection(router, logits, result)
        else:
            baselines.verify(router, logits, result)

    return Work(
        calls={SHORT.get(name, name): call for name, call in calls.items()},
        unavailable={SHORT.get(name, name): reason for name, reason in unavailable.items()},
        refresh=lambda i: logits.copy_(inputs[i % ROTATED]),
        verify=verify,
        bytes=logits.nbytes + sum(tensor.nbytes for tensor in result),
        data=sample().source,
    )


@cache
def compiled_composition(router: Router, device: str, compiler: str) -> baselines.Composition:
    """The composition compiled for any number of tokens: once per router, not once per case.

    Dynamo keeps what it compiled with the code object, which closures share: a copy for every
    router keeps the others' guards out of its way.
    """
    compose: Any = baselines.composition(router, device)
    compose.__code__ = compose.__code__.replace()
    compiled: Any = torch.compile(compose, backend=compiler, dynamic=True, fullgraph=True)
    return compiled


def flashinfer(router: Router, logits: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """FlashInfer's routing of DeepSeek-V3, which writes weights in the dtype of the logits."""
    from flashinfer.fused_moe import fused_topk_deepseek

    bias = router.options(logits.device)["e_score_correction_bias"]
    weights = logits.new_empty(len(logits), router.top_k)
    experts = logits.new_empty(len(logits), router.top_k, dtype=torch.int32)

    def call() -> tuple[Tensor, Tensor]:
        fused_topk_deepseek(
            logits, bias, router.groups, router.kept, router.top_k, router.factor, weights, experts
        )
        return weights, experts

    return call


def case(router: Router, tokens: int, dtype: torch.dtype) -> Case:
    sizes = {"tokens": tokens, "experts": router.experts}
    return Case(router.label, sizes, dtype, partial(build, router, tokens, dtype))


CASES = [
    case(router, tokens, dtype)
    for tokens in (4096, 1, 16384, 256, 16)
    for router in (PANGU, DEEPSEEK_V3)
    for dtype in (torch.bfloat16, torch.float32)
]
CASES += [case(router, 4096, torch.float32) for router in OTHERS]
TINY = [case(PANGU, 4, torch.bfloat16), case(DEEPSEEK_V3, 4, torch.float32)]


def small(
    router: Router,
    dtype: torch.dtype,
    tokens: int = 5,
    of: Callable[..., Any] = triselect.grouped_topk,
) -> Small:
    """A small case of `of`, which takes the logits and options of grouped_topk."""
    options = router.options()
    vectors = {name: options.pop(name) for name in tuple(options) if torch.is_tensor(options[name])}

    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(tokens, router.experts, generator=generator)
        return [logits.to(dtype), *vectors.values()]

    def call(logits: Tensor, *given: Tensor, backend: str = "auto") -> Any:
        return of(logits, backend=backend, **options, **dict(zip(vectors, given, strict=True)))

    return Small(f"{router.name} {str(dtype).removeprefix('torch.')}", inputs, call)


# Groups in lanes, ranked, padded and in registers; one selection and two; keys packed and not.
SMALL = [
    small(PANGU, torch.bfloat16),
    small(DEEPSEEK_V3, torch.float32),
    *(small(router, torch.float32) for router in OTHERS),
    small(OTHERS[-2], torch.bfloat16),
]
