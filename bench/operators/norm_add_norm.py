"""norm_add_norm against PyTorch's own rms_norm and addition, the same compiled, and our eager.

Pangu Pro MoE: 5120 numbers to a token; Pangu Ultra MoE: 7680.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.ops.norm_add_norm import norm_add_norm


def composed(y: Tensor, residual: Tensor, post: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """What people run, in the dtype of the model."""
    hidden = y.shape[-1:]
    r = residual + rms_norm(y, hidden, post, 1e-5)
    return r, rms_norm(r, hidden, following, 1e-5)


def build(tokens: int, hidden: int, device: str, compiler: str | None) -> Work:
    generator = torch.Generator(device).manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(torch.bfloat16)

    inputs = [numbers(2, tokens, hidden) for _ in range(ROTATED)]
    weights = numbers(2, hidden).unbind()
    now = inputs[0].clone()
    y, residual = now
    args = (y, residual, *weights)
    calls: dict[str, Any] = {
        OURS: lambda: norm_add_norm(*args),
        "eager": lambda: norm_add_norm(*args, backend="eager"),
        "torch.rms_norm": lambda: composed(*args),
    }
    unavailable = {}
    if compiler:
        function = torch.compile(composed, backend=compiler, dynamic=False)
        calls["torch.compile"] = lambda: function(*args)
    else:
        unavailable["torch.compile"] = "there was no time to compile it"

    def verify(provider: str, result: tuple[Tensor, Tensor]) -> None:
        expected = composed(*(x.double() for x in args))
        for mine, right in zip(result, expected, strict=True):
            torch.testing.assert_close(mine.double(), right, rtol=2e-2, atol=2e-2)

    return Work(
        calls=calls,
        unavailable=unavailable,
        refresh=lambda i: now.copy_(inputs[i % ROTATED]),
        verify=verify,
        bytes=2 * now.nbytes + sum(x.nbytes for x in weights),
    )


def case(tokens: int, hidden: int) -> Case:
    sizes = {"tokens": tokens, "hidden": hidden}
    label = {5120: "Pangu Pro", 7680: "Pangu Ultra"}.get(hidden, "tiny")
    return Case(label, sizes, torch.bfloat16, partial(build, tokens, hidden))


CASES = [case(tokens, hidden) for tokens in (1, 16, 1024) for hidden in (5120, 7680)]
TINY = [case(3, 40)]


def small(name: str, hidden: int, dtype: torch.dtype, placement: str) -> Small:
    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randn, generator=generator)
        return [draw(5, hidden).to(dtype), draw(5, hidden).to(dtype), draw(hidden), draw(hidden)]

    return Small(name, inputs, partial(norm_add_norm, placement=placement))


SMALL = [
    small("no power of two", 100, torch.float16, "branch"),
    small("of the sum", 130, torch.float32, "sum"),
    small("too long for registers", 16400, torch.bfloat16, "branch"),
]
