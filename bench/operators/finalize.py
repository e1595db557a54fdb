"""finalize against what people write: a gather and a sum, index_add, the way of transformers.

Pangu Pro's sizes: rows of 5120 numbers, 8 for each token.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

import triselect
from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect import Permutation

EXPERTS, TOP_K, HIDDEN = 64, 8, 5120


def by_gather(rows: Tensor, weights: Tensor, permutation: Permutation) -> Tensor:
    """Rows in the order of tokens, and a sum."""
    return (rows[permutation.slot_of] * weights[..., None]).sum(1).to(rows.dtype)


def by_index_add(rows: Tensor, weights: Tensor, permutation: Permutation) -> Tensor:
    """Each row added to its token, in rows' dtype: by atomics on a GPU."""
    of_row = torch.empty_like(permutation.source, dtype=rows.dtype)
    of_row[permutation.slot_of.flatten()] = weights.flatten().to(rows.dtype)
    out = rows.new_zeros(len(weights), rows.shape[1])
    return out.index_add_(0, permutation.source, rows * of_row[:, None])


def as_transformers(rows: Tensor, weights: Tensor, permutation: Permutation) -> Tensor:
    """As its grouped_mm experts end: weighed, then in the order of tokens, then summed."""
    slots = permutation.slot_of.flatten()
    of_row = torch.empty(len(slots), device=rows.device)
    of_row[slots] = weights.flatten()
    weighed = rows * of_row[:, None]
    return weighed[slots].view(*weights.shape, -1).sum(1).to(rows.dtype)


def build(tokens: int, residuals: int, device: str, compiler: str | None) -> Work:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    routing = triselect.grouped_topk(numbers(tokens, EXPERTS).float(), TOP_K)
    weights, permutation = routing.weights, triselect.permute(routing.experts, EXPERTS)
    inputs = [numbers(tokens * TOP_K, HIDDEN) for _ in range(ROTATED)]
    rows, added = inputs[0].clone(), [numbers(tokens, HIDDEN) for _ in range(residuals)]

    def ours(backend: str = "auto") -> Tensor:
        return triselect.finalize(rows, weights, permutation, residuals=added, backend=backend)

    def composed(combine: Any) -> Tensor:
        return sum(added, combine(rows, weights, permutation))

    calls: dict[str, Any] = {
        OURS: ours,
        "eager": partial(ours, "eager"),
        "gather": partial(composed, by_gather),
        "index_add": partial(composed, by_index_add),
        "transformers": partial(composed, as_transformers),
    }
    if compiler:
        compiled = torch.compile(by_gather, backend=compiler)
        calls["gather, comp."] = partial(composed, compiled)

    def verify(provider: str, result: Tensor) -> None:
        expected = composed(lambda rows, *rest: by_gather(rows.double(), *rest))
        atol = 0.5 if provider == "index_add" else 0.05  # it rounds every sum
        torch.testing.assert_close(result.double(), expected, rtol=2e-2, atol=atol)

    read = sum(x.nbytes for x in (rows, weights, permutation.slot_of, *added))
    return Work(
        calls=calls,
        unavailable={},
        refresh=lambda i: rows.copy_(inputs[i % ROTATED]),
        verify=verify,
        bytes=read + tokens * HIDDEN * rows.itemsize,
    )


def case(tokens: int, residuals: int = 0) -> Case:
    sizes = {"tokens": tokens, "top_k": TOP_K, "hidden": HIDDEN}
    label = "Pangu Pro" + (", a residual" if residuals else "")
    return Case(label, sizes, torch.bfloat16, partial(build, tokens, residuals))


CASES = [case(1024), case(1), case(16, 1), case(16)]
TINY = [case(4), case(4, 1)]


def small(name: str, dtype: torch.dtype, top_k: int, hidden: int, biased: bool = False) -> Small:
    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randn, generator=generator)
        experts = torch.randint(-1, 6, (9, top_k), generator=generator)
        slot_of = triselect.permute(experts, 6, backend="eager").slot_of
        rows, bias, residual = (draw(n, hidden).to(dtype) for n in (9 * top_k, 6, 9))
        return [rows, draw(9, top_k), slot_of, experts, bias, residual]

    def call(
        rows: Tensor,
        weights: Tensor,
        slot_of: Tensor,
        experts: Tensor,
        bias: Tensor,
        residual: Tensor,
        *,
        backend: str = "auto",
    ) -> tuple[Tensor]:
        permutation = Permutation(slot_of, slot_of, slot_of)
        of_experts: dict[str, Any] = {"experts": experts, "bias": bias} if biased else {}
        residuals = (residual,) if biased else ()
        return (
            triselect.finalize(
                rows, weights, permutation, residuals=residuals, backend=backend, **of_experts
            ),
        )

    return Small(name, inputs, call)


SMALL = [
    small("bfloat16", torch.bfloat16, 8, 100),
    small("float32, bias and residual", torch.float32, 3, 64, biased=True),
    small("float16, many of each", torch.float16, 11, 40, biased=True),
]
