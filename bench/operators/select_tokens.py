"""select_tokens against torch.topk, and on the CPU NumPy's argpartition; both tie as they like."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.ops import select_tokens


def pooled(scores: Tensor, proximity: int) -> Tensor:
    return torch.nn.functional.max_pool1d(scores, 2 * proximity + 1, 1, proximity)


def by_argpartition(scores: Tensor, k: int) -> Tensor:
    last = scores.shape[1] - k
    return torch.from_numpy(np.argpartition(scores.numpy(), last, axis=1)[:, last:])


def assert_selected(scores: Tensor, k: int, proximity: int, provider: str, index: Tensor) -> None:
    """Ours as eager's; of the others no more than the scores, in whatever order."""
    expected = select_tokens(scores, k, proximity=proximity, backend="eager")
    if provider in (OURS, "eager"):
        assert torch.equal(index, expected)
        return
    best = pooled(scores, proximity)
    mine, theirs = (best.gather(1, i.long()).sort(1).values for i in (expected, index))
    assert torch.equal(mine, theirs)


def build(
    rows: int, tokens: int, k: int, proximity: int, device: str, compiler: str | None
) -> Work:
    generator = torch.Generator(device).manual_seed(0)
    inputs = torch.randn(ROTATED, rows, tokens, generator=generator, device=device)
    scores = inputs[0].clone()
    calls: dict[str, Any] = {
        OURS: lambda: select_tokens(scores, k, proximity=proximity),
        "eager": lambda: select_tokens(scores, k, proximity=proximity, backend="eager"),
    }
    if proximity:
        calls["torch.topk"] = lambda: pooled(scores, proximity).topk(k).indices
    else:
        calls["torch.topk"] = lambda: scores.topk(k).indices
    unavailable = {}
    if device != "cpu":
        unavailable["numpy.argpartition"] = "it runs on the CPU"
    elif proximity:
        unavailable["numpy.argpartition"] = "NumPy pools nothing"
    else:
        calls["numpy.argpartition"] = lambda: by_argpartition(scores, k)
    return Work(
        calls=calls,
        unavailable=unavailable,
        refresh=lambda i: scores.copy_(inputs[i % ROTATED]),
        verify=partial(assert_selected, scores, k, proximity),
        bytes=scores.nbytes + 4 * rows * k,
    )


def case(rows: int, tokens: int, k: int = 2048, proximity: int = 0) -> Case:
    sizes = {"rows": rows, "tokens": tokens, "top_k": k, "proximity": proximity}
    build_case = partial(build, rows, tokens, k, proximity)
    return Case("normal scores", sizes, torch.float32, build_case)


CASES = [
    case(1, 131072),
    case(1, 32768),
    case(1, 2**20),
    case(16, 131072),
    case(1, 131072, proximity=1),
]
TINY = [case(2, 300, 20), case(1, 300, 20, proximity=2)]


def small(name: str, rows: int, tokens: int, k: int, dtype: torch.dtype, proximity: int) -> Small:
    def inputs(seed: int) -> list[Tensor]:
        """Scores that tie often, and ranges."""
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randint(-99, 100, (rows, tokens), generator=generator) / 16
        start = torch.randint(0, tokens // 4, (rows,), generator=generator)
        end = torch.randint(tokens // 2, tokens + 1, (rows,), generator=generator)
        return [scores.to(dtype), start, end]

    def call(scores: Tensor, start: Tensor, end: Tensor, *, backend: str = "auto") -> list[Tensor]:
        return [
            select_tokens(scores, k, proximity=proximity, start=start, end=end, backend=backend)
        ]

    return Small(name, inputs, call)


SMALL = [
    small("a program for a row", 3, 300, 40, torch.float32, 0),
    small("pieces of a row", 2, 9000, 100, torch.float32, 0),
    small("pieces, 16 bits", 1, 9000, 5000, torch.bfloat16, 0),
    small("far-reaching", 2, 300, 40, torch.float16, 20),
]
