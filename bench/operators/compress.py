"""compress against adding up heads and a matrix product, as one writes it in PyTorch.

Llama-3-8B: 32 query heads and 8 key heads of 128 numbers, to 128 numbers.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.ops.compress import Compressed, compress

GROUPS, DIM, NUMBERS = 8, 128, 128


def by_matmul(x: Tensor, weight: Tensor, values: torch.dtype | None) -> Compressed:
    """Heads added up in x's dtype, then the product; 8 bits by the largest of each token."""
    y = x.unflatten(1, (weight.shape[1] // x.shape[2], -1)).sum(2).flatten(1) @ weight.T
    if values is None:
        return Compressed(y, None)
    y = y.float()
    scale = y.abs().amax(1, keepdim=True) / 127
    return Compressed((y / scale).round().to(values), scale[:, 0])


def build(
    dtype: torch.dtype,
    heads: int,
    values: torch.dtype | None,
    tokens: int,
    device: str,
    compiler: str | None,
) -> Work:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    weight = numbers(NUMBERS, GROUPS * DIM) / (GROUPS * DIM) ** 0.5
    inputs = [numbers(tokens, heads, DIM) for _ in range(ROTATED)]
    x = inputs[0].clone()
    calls: dict[str, Callable[[], Compressed]] = {
        OURS: lambda: compress(x, weight, dtype=values),
        "eager": lambda: compress(x, weight, dtype=values, backend="eager"),
        "torch.matmul": lambda: by_matmul(x, weight, values),
    }
    result = calls[OURS]()

    def verify(provider: str, result: Compressed) -> None:
        expected = by_matmul(x.double(), weight.double(), None).values
        got = result.values.double()
        if result.scale is not None:
            got *= result.scale[:, None]
        atol = 2.0**-6 * float(expected.abs().amax())  # half a step of 8 bits, or of bfloat16
        torch.testing.assert_close(got, expected, rtol=0, atol=atol)

    written = sum(t.nbytes for t in result if t is not None)
    return Work(
        calls=calls,
        unavailable={},
        refresh=lambda i: x.copy_(inputs[i % ROTATED]),
        verify=verify,
        bytes=x.nbytes + weight.nbytes + written,
        flops=2 * tokens * weight.numel(),
    )


def case(tokens: int, heads: int, values: torch.dtype | None = None) -> Case:
    label = ("keys" if heads == GROUPS else "queries") + (" to int8" if values else "")
    sizes = {"tokens": tokens, "heads": heads, "groups": GROUPS}
    return Case(label, sizes, torch.bfloat16, partial(build, torch.bfloat16, heads, values, tokens))


CASES = [
    case(1, GROUPS, torch.int8),
    case(512, 32),
    case(1, 32),
    case(512, GROUPS, torch.int8),
    case(1, GROUPS),
    case(512, GROUPS),
    case(8192, GROUPS),
]
TINY = [case(4, 32), case(4, GROUPS, torch.int8)]


def small(
    name: str, tokens: int, heads: int, dtype: torch.dtype, values: torch.dtype | None = None
) -> Small:
    """Queries or keys of a few tokens; with slots in a cache where they become 8 bits."""
    groups, dim, numbers, rows = 2, 24, 40, 200

    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randn, generator=generator)
        x, weight = draw(tokens, heads, dim), draw(numbers, groups * dim) / 7
        slots = torch.randperm(rows, generator=generator)[:tokens]
        return [x.to(dtype), weight.to(dtype), slots.masked_fill(slots % 9 == 0, -1)]

    def call(x: Tensor, weight: Tensor, slots: Tensor, *, backend: str = "auto") -> tuple:
        if values is None:
            return (compress(x, weight, backend=backend).values,)
        cache = x.new_zeros(rows, numbers, dtype=values)
        out = Compressed(cache, x.new_zeros(rows, dtype=torch.float32))
        return compress(x, weight, out=out, slots=slots, backend=backend)

    return Small(name, inputs, call)


SMALL = [
    small("queries", 30, 8, torch.bfloat16),
    small("keys", 5, 2, torch.float32),
    small("keys to int8 in their slots", 40, 2, torch.float16, torch.int8),
]
