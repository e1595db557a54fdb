"""The gradient of grouped_topk against autograd's through eager code: ours, and that of engines.

Ours starts from the logits and computes scores again; autograd has kept what it needs.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from triselect.kernels.grouped_topk import eager

from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.report import baselines
from triselect.report.routers import DEEPSEEK_V3, PANGU, Router, sample, tokens_of

backward = torch.ops.triselect.grouped_topk_backward
UNSCALED = replace(PANGU, expert_scale=False)  # autograd of the composition has no need of it


def build(
    router: Router, tokens: int, dtype: torch.dtype, device: str, compiler: str | None
) -> Work:
    logits = tokens_of(router, tokens, dtype, device)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROTATED, tokens, router.top_k, generator=generator).to(device)
    grad = inputs[0].clone()
    args = arguments(router, logits)
    experts = router(logits).experts
    of_backward = (logits, experts, args[3], *args[6:8], args[8])

    refreshed = [(grad, inputs)]  # what is copied where before each round

    def by_autograd(compose: Any) -> Any:
        leaf = logits.clone().requires_grad_()
        weights, chosen = compose(leaf)
        theirs, ours = chosen.argsort(-1), experts.argsort(-1)
        if not torch.equal(chosen.gather(1, theirs), experts.gather(1, ours)):
            return None
        # Their experts may stand in another order: so does the gradient that they are given.
        place = torch.empty_like(theirs).scatter_(1, theirs, ours)
        upstream = inputs.gather(2, place.expand_as(inputs))
        mine = upstream[0].clone()
        refreshed.append((mine, upstream))
        return lambda: torch.autograd.grad(weights, leaf, mine, retain_graph=True)[0]

    calls: dict[str, Any] = {
        OURS: lambda: backward(grad, *of_backward)[0],
        "formula, eager": lambda: backward.backend(grad, *of_backward, "eager")[0],
        "autograd, eager": by_autograd(lambda x: eager.grouped_topk(x, router.top_k, *args)),
        "autograd, comp.": by_autograd(baselines.composition(router, device)),
    }
    unavailable = {name: "it breaks ties otherwise" for name in calls if calls[name] is None}

    def refresh(i: int) -> None:
        for target, source in refreshed:
            target.copy_(source[i % ROTATED])

    def verify(provider: str, result: Tensor) -> None:
        expected = backward.backend(grad, *of_backward, "reference")[0]
        rounding = {"rtol": 2e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(result, expected, **rounding)

    return Work(
        calls={name: call for name, call in calls.items() if call is not None},
        unavailable=unavailable,
        refresh=refresh,
        verify=verify,
        bytes=2 * logits.nbytes + grad.nbytes + experts.nbytes,
        data=sample().source,
    )


def arguments(router: Router, logits: Tensor) -> tuple[Any, ...]:
    """Those of the operator after `top_k`, in its order, without the scale of experts."""
    options = router.options(logits.device)
    return (
        router.groups,
        router.kept,
        router.balanced,
        router.scoring_func,
        router.group_score,
        options.get("e_score_correction_bias"),
        router.renormalize,
        router.factor,
        None,
    )


def case(router: Router, tokens: int, dtype: torch.dtype) -> Case:
    sizes = {"tokens": tokens, "experts": router.experts}
    return Case(router.label, sizes, dtype, partial(build, router, tokens, dtype))


CASES = [
    case(router, tokens, dtype)
    for tokens in (4096, 16384, 256)
    for router in (UNSCALED, DEEPSEEK_V3)
    for dtype in (torch.bfloat16, torch.float32)
]
TINY = [case(UNSCALED, 4, torch.bfloat16), case(DEEPSEEK_V3, 4, torch.float32)]


def small(router: Router, dtype: torch.dtype, with_scale: bool) -> Small:
    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        grad = torch.randn(37, router.top_k, generator=generator)
        logits = 2 * torch.randn(37, router.experts, generator=generator)
        scale = [1 + torch.rand(router.experts, generator=generator)] if with_scale else []
        return [grad, logits.to(dtype), router(logits).experts, *scale]

    def call(
        grad: Tensor,
        logits: Tensor,
        experts: Tensor,
        scale: Tensor | None = None,
        *,
        backend: str = "auto",
    ) -> tuple[Tensor, Tensor]:
        options = router.scoring_func, router.renormalize, router.factor
        found: tuple[Tensor, Tensor] = backward.backend(
            grad, logits, experts, *options, scale, backend
        )
        return found

    scaled = " scaled" if with_scale else ""
    return Small(f"{router.name} {str(dtype).removeprefix('torch.')}{scaled}", inputs, call)


SMALL = [
    small(PANGU, torch.float32, with_scale=True),
    small(PANGU, torch.bfloat16, with_scale=False),
    small(DEEPSEEK_V3, torch.float32, with_scale=False),
]
