"""merge against the same in torch operators."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect import esa

HEADS, DIM = 32, 128


def composed(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Neither attention is over nothing."""
    lse = torch.logaddexp(lse_a, lse_b)
    a, b = (lse_a - lse).exp()[..., None], (lse_b - lse).exp()[..., None]
    return (out_a * a + out_b * b).to(out_a.dtype), lse


def build(queries: int, device: str, compiler: str | None) -> Work:
    generator = torch.Generator(device).manual_seed(0)
    outs = torch.randn(2, ROTATED, queries, HEADS, DIM, generator=generator, device=device)
    lses = torch.randn(2, ROTATED, queries, HEADS, generator=generator, device=device)
    (outs_a, outs_b), (lses_a, lses_b) = outs.to(torch.bfloat16), lses
    inputs = outs_a, lses_a, outs_b, lses_b
    now = [x[0].clone() for x in inputs]
    calls: dict[str, Any] = {
        OURS: lambda: esa.merge(*now),
        "eager": lambda: esa.merge(*now, backend="eager"),
        "torch": lambda: composed(*now),
    }

    def verify(provider: str, result: tuple[Tensor, Tensor]) -> None:
        expected = esa.merge(*now, backend="reference")
        torch.testing.assert_close(result[0], expected.out, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(result[1], expected.lse)

    return Work(
        calls=calls,
        unavailable={},
        refresh=lambda i: [x.copy_(y[i % ROTATED]) for x, y in zip(now, inputs, strict=True)],
        verify=verify,
        bytes=sum(x.nbytes for x in now) + now[0].nbytes + now[1].nbytes,
    )


def case(queries: int) -> Case:
    sizes = {"queries": queries, "heads": HEADS, "dim": DIM}
    return Case("Llama-3-8B", sizes, torch.bfloat16, partial(build, queries))


CASES = [case(512), case(1)]
TINY = [case(2)]


def inputs(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outs = torch.randn(2, 5, 3, 24, generator=generator)
    lses = torch.randn(2, 5, 3, generator=generator)
    lses[0, 0], lses[1, :2] = -torch.inf, -torch.inf
    return [outs[0], lses[0], outs[1], lses[1]]


SMALL = [Small("some over nothing", inputs, esa.merge)]
