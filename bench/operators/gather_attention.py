"""One query's attention over listed tokens, against gathering them for SDPA; and dense decoding."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect import esa

from .selected_attention import (
    DIM,
    GROUPS,
    HEADS,
    INITIAL,
    SELECTED,
    Budget,
    Layer,
    assert_near,
    attention_of_torch,
    layer,
)

LAYERS = 3  # whose caches take turns, so that no call finds its own cached


def build(tokens: int, listed: int, device: str, compiler: str | None) -> Work:
    """Over `listed` tokens and the initial ones, or over all where none are listed."""
    generator = torch.Generator(device).manual_seed(0)
    layers = [
        layer(tokens, torch.bfloat16, Budget(compressed=16), i, device)
        for i in range(LAYERS if device == "cpu" else 1)
    ]
    shape = (ROTATED, 1, HEADS, DIM)
    queries = torch.randn(shape, generator=generator, device=device).to(torch.bfloat16)
    q, turn, used = queries[:1].clone(), [0], {}
    initial = min(INITIAL, tokens // 4) if listed else 0
    drawn = torch.randperm(tokens - initial, generator=generator, device=device)[:listed]
    index = (drawn.sort().values + initial).int()[None]
    read = torch.cat((torch.arange(initial, device=device), index[0])) if listed else slice(None)

    def ours(of: Layer) -> Tensor:
        if listed:
            return esa.gather_attention(q, of.k, of.v, index, num_initial=initial).out
        return esa.window_attention(q, of.k, of.v).out

    def taking_turns(name: str, call: Any) -> Any:
        def once() -> Tensor:
            turn[0] += 1
            used[name] = layers[turn[0] % len(layers)]
            return call(used[name])

        return once

    calls = {
        OURS: ours,
        "SDPA": lambda of: attention_of_torch(q, of.k[:, read], of.v[:, read]),
    }

    def verify(provider: str, result: Tensor) -> None:
        of = used[provider]
        k, v = (x[:, read] for x in (of.k, of.v))
        assert_near(result, esa.window_attention(q, k, v, backend="eager").out)

    attended = listed + initial if listed else tokens
    return Work(
        calls={name: taking_turns(name, call) for name, call in calls.items()},
        unavailable={},
        refresh=lambda i: q.copy_(queries[i % ROTATED]),
        verify=verify,
        bytes=attended * 4 * GROUPS * DIM,
        flops=4 * attended * HEADS * DIM,
    )


def case(tokens: int, listed: int) -> Case:
    label = "listed tokens" if listed else "dense decoding"
    sizes = {"tokens": tokens, "listed": listed}
    return Case(label, sizes, torch.bfloat16, partial(build, tokens, listed))


CASES = [case(131072, 0), case(131072, SELECTED), case(32768, 0), case(4096, 0)]
TINY = [case(300, 20), case(90, 0)]


def small(name: str, paged: bool) -> Small:
    """Two sequences; `paged` in blocks of 8 tokens, one of which is a hole."""

    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        q = torch.randn(2, 3, 4, 16, generator=generator)
        shape = (20, 8, 2, 16) if paged else (2, 80, 2, 16)
        k, v = torch.randn(2, *shape, generator=generator).unbind()
        chosen = [torch.randperm(80, generator=generator)[:30].sort().values for _ in range(2)]
        table = torch.randperm(20, generator=generator).view(2, 10)
        table[1, 4] = -1
        return [q, k, v, torch.stack(chosen), table]

    def call(
        q: Tensor, k: Tensor, v: Tensor, index: Tensor, table: Tensor, *, backend: str = "auto"
    ) -> esa.Attention:
        return esa.gather_attention(
            q, k, v, index, num_initial=2, block_table=table if paged else None, backend=backend
        )

    return Small(name, inputs, call)


SMALL = [small("contiguous", paged=False), small("paged", paged=True)]
