"""Everyone who can route a batch: triselect's backends and what people would otherwise run."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import triselect
from triselect.ops import backends
from triselect.report import baselines
from triselect.report.routers import Router

LABELS = {
    "triselect": "triselect",
    "native": "triselect, native",
    "triton": "triselect, triton",
    "eager": "triselect, eager",
    "composition": "eager composition",
    "compiled": "torch.compile",
    "selection": "plain top-k, selection alone",
}
SHORT = {"composition": "eager comp.", "compiled": "torch.compile", "selection": "top-k alone"}
RIVALS = ("composition", "compiled", "selection")


class Providers(NamedTuple):
    """`calls` by name, each verified, and the reasons of those that cannot be called."""

    calls: dict[str, Callable[[], object]]
    unavailable: dict[str, str]


def providers(
    router: Router,
    logits: Tensor,
    *,
    compiler: str | None = "inductor",
    compiled: baselines.Composition | None = None,
) -> Providers:
    """Calls without arguments that route `logits`; all results are verified first.

    `compiled` is a composition that was compiled before; otherwise it is compiled for this shape by
    `compiler`, a backend of `torch.compile`, or left out where that is None.
    """
    options = router.options(logits.device)
    compose = baselines.composition(router, logits.device)
    calls: dict[str, Callable[[], object]] = {}
    unavailable: dict[str, str] = {}

    calls["triselect"] = lambda: triselect.grouped_topk(logits, **options)
    for name in ("native", "triton", "eager"):
        try:
            backends.require(name, logits.device)
        except triselect.BackendUnavailable as error:
            unavailable[name] = str(error).split(": ", 1)[1]
        else:
            calls[name] = _named(logits, options, name)
    calls["composition"] = partial(compose, logits)
    for call in calls.values():
        baselines.verify(router, logits, call())  # type: ignore[arg-type]

    if compiler is None:
        unavailable["compiled"] = "left out on request"
    else:
        # It can fail in ways of its own: no C++ compiler, an unsupported Python, a bug.
        try:
            compiled = compiled or compile_composition(compose, backend=compiler, dynamic=False)
            result = compiled(logits)
        except Exception as error:
            unavailable["compiled"] = str(error).strip().split("\n", 1)[0]
        else:
            baselines.verify(router, logits, result)
            calls["compiled"] = partial(compiled, logits)

    select = baselines.selection_alone(router)
    if select is None:
        unavailable["selection"] = "a plain top-k does not select what this router does"
    else:
        baselines.verify_selection(router, logits, select(logits))
        calls["selection"] = partial(select, logits)
    return Providers(calls, unavailable)


def compile_composition(
    compose: baselines.Composition, *, backend: str = "inductor", dynamic: bool
) -> baselines.Composition:
    """`torch.compile`, with the memory of earlier shapes cleared, so that none was one too many."""
    torch._dynamo.reset()
    compiled: Any = torch.compile(compose, backend=backend, dynamic=dynamic, fullgraph=True)
    return compiled


def _named(logits: Tensor, options: dict[str, Any], backend: str) -> Callable[[], object]:
    return lambda: triselect.grouped_topk(logits, backend=backend, **options)
