"""The roof: what the device makes of a copy and of a matrix product, by the benchmarks' clock."""

from typing import NamedTuple

import torch

from triselect.report.timing import Call

COPY_BYTES = 2**30  # read, and as many written
SIDE = 8192


class Roof(NamedTuple):
    """A call, and what it moves or computes."""

    call: Call
    bytes: int | None
    flops: int | None


def roofs(device: str, copy_bytes: int = COPY_BYTES, side: int = SIDE) -> dict[str, Roof]:
    """A copy of random bytes, and a bfloat16 product of square random matrices."""
    source = torch.randint(256, (copy_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    return {
        "copy": Roof(lambda: target.copy_(source), 2 * copy_bytes, None),
        "matrix product": Roof(lambda: torch.mm(a, b, out=product), None, 2 * side**3),
    }
