"""table_route against the same as indexing, gathering and dividing in PyTorch."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

import triselect
from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.moe import random_table

VOCABULARY = 129280  # DeepSeek's
EXPERTS, TOP_K = 256, 6


def build(weighed: bool, tokens: int, device: str, compiler: str | None) -> Work:
    """As DeepSeek-V4 weighs the experts of its table; or as hash layers take one, unweighed."""
    generator = torch.Generator().manual_seed(0)
    top_k = TOP_K if weighed else 1
    table = random_table(VOCABULARY, EXPERTS, top_k, generator=generator).to(device)
    inputs = torch.randint(VOCABULARY, (ROTATED, tokens), generator=generator).to(device)
    ids = inputs[0].clone()
    logits = torch.randn(tokens, EXPERTS, generator=generator).to(device) if weighed else None
    options: dict[str, Any] = {"renormalize": weighed, "routed_scaling_factor": 1.5}

    def routed(backend: str = "auto") -> triselect.Routing:
        return triselect.table_route(ids, table, EXPERTS, logits=logits, backend=backend, **options)

    def composed() -> tuple[Tensor, Tensor]:
        experts = table[ids]
        if logits is None:
            return torch.full(experts.shape, 1.5, device=device), experts
        weights = torch.nn.functional.softplus(logits.gather(1, experts.long())).sqrt()
        return weights / weights.sum(-1, keepdim=True) * 1.5, experts

    def verify(provider: str, result: tuple[Tensor, Tensor]) -> None:
        weights, experts = routed("reference")
        assert torch.equal(result[1], experts)
        torch.testing.assert_close(result[0], weights, rtol=1e-5, atol=1e-7)

    calls: dict[str, Any] = {
        OURS: routed,
        "eager": partial(routed, "eager"),
        "eager comp.": composed,
    }
    read = ids.nbytes + 4 * ids.numel() * top_k * (2 if weighed else 1)  # entries, logits
    return Work(
        calls=calls,
        unavailable={},
        refresh=lambda i: ids.copy_(inputs[i % ROTATED]),
        verify=verify,
        bytes=read + sum(tensor.nbytes for tensor in routed()),
    )


def case(weighed: bool, tokens: int) -> Case:
    sizes = {"tokens": tokens, "experts": EXPERTS, "top_k": TOP_K if weighed else 1}
    label = "table and logits (DeepSeek-V4)" if weighed else "table alone (hash layer)"
    return Case(label, sizes, torch.float32, partial(build, weighed, tokens))


CASES = [case(weighed, tokens) for tokens in (256, 4096, 1) for weighed in (True, False)]
TINY = [case(True, 4), case(False, 4)]


def small(name: str, domains: bool, hashed: bool, scoring_func: str | None) -> Small:
    groups, experts, top_k, tokens = (4 if domains else 1), 24, 3, 21

    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randint, generator=generator)
        logits = torch.randn(tokens, experts, generator=generator)
        return [
            draw(-1, 50, (tokens,)),
            draw(experts // groups, (50, top_k)).int(),
            draw(groups, (tokens,)),
            logits,
        ]

    def call(
        ids: Tensor, table: Tensor, domain: Tensor, logits: Tensor, *, backend: str = "auto"
    ) -> triselect.Routing:
        return triselect.table_route(
            ids,
            None if hashed else table,
            experts,
            top_k=top_k,
            domains=domain if domains else None,
            num_expert_group=groups,
            logits=logits if scoring_func else None,
            scoring_func=scoring_func or "sqrt_softplus",
            renormalize=bool(scoring_func),
            backend=backend,
        )

    return Small(name, inputs, call)


SMALL = [
    small("table", False, False, None),
    small("table and logits", False, False, "sqrt_softplus"),
    small("domains, hash and softmax", True, True, "softmax"),
]
