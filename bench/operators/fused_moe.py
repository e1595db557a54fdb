"""A whole mixture of experts behind its router, against the experts of transformers.

Their three implementations are called as their models call them: the module's forward with
``config._experts_implementation``. Pangu Pro MoE's layer, 2.6 GB of bfloat16, and smaller experts.
Weights of int8 against our own bfloat16.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

import triselect
from bench.device.records import OURS
from bench.moe_peers import PEERS, grouped, installed
from bench.operators.grouped_swiglu import (
    SMALLER,
    TINIEST,
    Batch,
    Sizes,
    Turns,
    Weights,
    assert_near,
    outputs,
    some_tokens,
    weights,
)
from bench.registry import Case, Small, Work
from triselect.moe.fused import Shared, fused_moe

OPERATOR = "grouped_swiglu_up"
PANGU = Sizes("Pangu Pro", 5120, 1344, 64)
THEIRS = ("eager", "batched_mm", "grouped_mm")
WIDE = "bfloat16 (ours)"
LONG = 1024  # tokens above which a call takes seconds on a CPU: fewer of them are compared
COPIED = 2**30  # bytes of weights that batched_mm may copy: it does so for every token


def by_grouped_mm(batch: Batch, gate_up: Tensor, down: Tensor) -> Tensor:
    """As one writes it from torch operators: sorted copies, two grouped products, a sum."""
    order, ends = by_expert = grouped(batch.experts, len(gate_up))
    grouped_mm = torch.nn.functional.grouped_mm
    rows = batch.hidden[order // batch.experts.shape[1]]
    gate, up = grouped_mm(rows, gate_up.mT, offs=ends).chunk(2, -1)
    return by_expert.summed(grouped_mm(silu(gate) * up, down.mT, offs=ends), batch)


def of_transformers(sizes: Sizes, of: Weights) -> dict[str, Callable[[Batch], Tensor]]:
    """Their module on our weights, by implementation."""
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    def one(implementation: str) -> Callable[[Batch], Tensor]:
        config: Any = Qwen3MoeConfig(
            hidden_size=sizes.hidden,
            moe_intermediate_size=sizes.inner,
            num_experts=sizes.experts,
            num_experts_per_tok=sizes.top_k,
        )
        config._experts_implementation = implementation
        with torch.device("meta"):
            experts: Any = Qwen3MoeExperts(config)
        experts.gate_up_proj = torch.nn.Parameter(of.gate_up, requires_grad=False)
        experts.down_proj = torch.nn.Parameter(of.down, requires_grad=False)
        dtype = of.gate_up.dtype
        # Their routers give int64, and weights in the dtype of the layer.
        return lambda b: experts(b.hidden, b.experts.long(), b.weights.to(dtype))

    return {implementation: one(implementation) for implementation in THEIRS}


def build(
    sizes: Sizes, tokens: int, stored: torch.dtype, device: str, compiler: str | None
) -> Work:
    dtype = torch.bfloat16
    of = weights(sizes, stored, device)
    turns = Turns(sizes, tokens, dtype, device)
    scales = {"gate_up_scale": of.gate_up_scale, "down_scale": of.down_scale}

    def ours(batch: Batch, backend: str = "auto") -> Tensor:
        routing = triselect.Routing(batch.weights, batch.experts)
        return fused_moe(batch.hidden, routing, *of[:2], backend=backend, **scales)

    calls: dict[str, Callable[[Batch], Tensor]] = {OURS: ours}
    unavailable = {}
    theirs = [f"transformers {name}" for name in THEIRS]
    wide = of
    if stored is not dtype:
        reason = "it has no product with weights of 8 bits and scales"
        unavailable = dict.fromkeys([*theirs, *PEERS, "torch.grouped_mm", "torch.compile"], reason)
        wide = weights(sizes, dtype, device)
        calls[WIDE] = lambda batch: fused_moe(
            batch.hidden, triselect.Routing(batch.weights, batch.experts), wide.gate_up, wide.down
        )
    else:
        calls["eager"] = partial(ours, backend="eager")
        calls["torch.grouped_mm"] = partial(by_grouped_mm, gate_up=of.gate_up, down=of.down)
        try:
            found = of_transformers(sizes, of)
        except ImportError:
            unavailable = dict.fromkeys(theirs, "transformers is not installed")
        else:
            calls |= dict(zip(theirs, found.values(), strict=True))
        copied = tokens * sizes.top_k * of.nbytes // sizes.experts
        if calls.pop("transformers batched_mm" if copied > COPIED else "", None):
            reason = f"it would copy {copied / 1e9:.0f} GB of weights"
            unavailable["transformers batched_mm"] = reason
        peers, missing = installed(of.gate_up, of.down, turns.now[0])
        calls |= peers
        unavailable |= missing
        if device == "cpu" and tokens > LONG:
            del calls["eager"]
            compiler = None
        if device != "cpu" and calls.pop("transformers eager", None):
            unavailable["transformers eager"] = "it waits for the device"
        if compiler is None:
            unavailable["torch.compile"] = "left out on request"
        else:
            add_compiled(calls, unavailable, compiler, turns.now[0])

    def verify(provider: str, result: Tensor) -> None:
        batch = turns.used[provider]
        assert result.shape == batch.hidden.shape
        for token in some_tokens(tokens):
            used = wide if provider == WIDE else of
            expected = batch.weights[token] @ outputs(used, batch, token)
            assert_near(result[token], expected)

    return Work(
        calls={name: turns.call(name, call) for name, call in calls.items()},
        unavailable=unavailable,
        refresh=turns.refresh,
        verify=verify,
        bytes=turns.distinct * of.nbytes // sizes.experts
        + 2 * tokens * sizes.hidden * dtype.itemsize
        + 2 * tokens * sizes.top_k * 4,
        flops=6 * tokens * sizes.top_k * sizes.hidden * sizes.inner,
    )


def add_compiled(
    calls: dict[str, Callable[[Batch], Tensor]],
    unavailable: dict[str, str],
    compiler: str,
    batch: Batch,
) -> None:
    """`by_grouped_mm` compiled. It can fail in ways of its own: no C++ compiler, a bug."""
    torch._dynamo.reset()
    compose = calls["torch.grouped_mm"]
    compiled = torch.compile(compose, backend=compiler, dynamic=False, fullgraph=True)
    try:
        with torch.inference_mode():
            compiled(batch)
    except Exception as error:
        unavailable["torch.compile"] = str(error).strip().split("\n", 1)[0]
    else:
        calls["torch.compile"] = compiled


def case(sizes: Sizes, tokens: int, stored: torch.dtype = torch.bfloat16) -> Case:
    label = sizes.label + (", int8" if stored is torch.int8 else "")
    measured = {"tokens": tokens, "experts": sizes.experts, "hidden": sizes.hidden}
    return Case(label, measured, torch.bfloat16, partial(build, sizes, tokens, stored))


CASES = [
    case(sizes, tokens, stored)
    for sizes in (PANGU, SMALLER)
    for stored, counts in (
        (torch.bfloat16, (1, 16, 4, 1024, 256, 4096)),
        (torch.int8, (1, 16, 4)),
    )
    for tokens in counts
]
TINY = [case(TINIEST, 3), case(TINIEST, 3, torch.int8), case(TINIEST, 50)]


def small(name: str, tokens: int, shared: bool) -> Small:
    """A few tokens, some of whose places are padding."""
    hidden, inner, experts, top_k = 72, 24, 6, 3

    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

        return [
            torch.randn(tokens, hidden, generator=generator),
            torch.rand(tokens, top_k, generator=generator),
            torch.randint(-1, experts, (tokens, top_k), generator=generator).int(),
            weight(experts, 2 * inner, hidden),
            weight(experts, hidden, inner),
            weight(2 * inner, hidden),
            weight(hidden, inner),
        ]

    def call(
        x: Tensor,
        share: Tensor,
        chosen: Tensor,
        gate_up: Tensor,
        down: Tensor,
        shared_gate_up: Tensor,
        shared_down: Tensor,
        *,
        backend: str = "auto",
    ) -> list[Tensor]:
        always = Shared(shared_gate_up, shared_down) if shared else None
        routing = triselect.Routing(share, chosen)
        return [fused_moe(x, routing, gate_up, down, shared=always, backend=backend)]

    return Small(name, inputs, call)


SMALL = [small("a token", 1, shared=False), small("some and a shared expert", 30, shared=True)]
