"""grouped_swiglu against a loop over the experts, as one writes it in PyTorch.

Pangu Pro MoE: 5120 numbers, 1344 in an expert, 8 experts of each token; 16 of its 64 experts, which
is what memory holds. And smaller ones, all 64. Every expert of a group is as likely.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

import triselect
from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.ops.grouped_swiglu import project, up

OPERATOR = "grouped_swiglu_up"
BLOCK = 128  # of weights in float8
FEW = 3  # tokens that are looked at: every number of them depends on all weights of its experts


class Sizes(NamedTuple):
    label: str
    hidden: int
    inner: int
    experts: int
    top_k: int = 8


PANGU = Sizes("Pangu Pro, 16 of 64 experts", 5120, 1344, 16)
SMALLER = Sizes("1024 to 512, 64 experts", 1024, 512, 64)
TINIEST = Sizes("tiny", 64, 32, 16)


class Weights(NamedTuple):
    gate_up: Tensor
    down: Tensor
    gate_up_scale: Tensor | None
    down_scale: Tensor | None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self if t is not None)

    def of(self, e: int) -> tuple[Tensor, Tensor]:
        """An expert's in float32."""
        scales = (self.gate_up_scale, self.down_scale)
        gate_up, down = (
            dequantised(w[e], None if scale is None else scale[e])
            for w, scale in zip(self[:2], scales, strict=True)
        )
        return gate_up, down


def dequantised(w: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return w.float()
    if scale.dim() == 1:
        return w.float() * scale[:, None]
    each = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return w.float() * each[: w.shape[0], : w.shape[1]]


@lru_cache(maxsize=1)  # hundreds of megabytes, for one case after the other
def weights(sizes: Sizes, dtype: torch.dtype, device: str) -> Weights:
    """Random numbers, the same block over and over in turned order: drawing them all takes long."""
    generator = torch.Generator(device).manual_seed(0)

    def filled(*shape: int) -> tuple[Tensor, Tensor | None]:
        block = torch.randn(2**20, generator=generator, device=device)
        block *= 40 if dtype.itemsize == 1 else shape[2] ** -0.5
        block = (block.round().clamp(-127, 127) if dtype is torch.int8 else block).to(dtype)
        whole = torch.empty(shape, dtype=dtype, device=device)
        for i, part in enumerate(whole.view(-1).split(len(block))):
            part.copy_(block.view(-1).roll(7919 * i)[: len(part)])
        of = shape[:2] if dtype is torch.int8 else (shape[0], *(-(-n // BLOCK) for n in shape[1:]))
        scale = torch.rand(of, generator=generator, device=device) + 0.5
        return whole, scale / 40 * shape[2] ** -0.5 if dtype.itemsize == 1 else None

    gate_up, of_gate_up = filled(sizes.experts, 2 * sizes.inner, sizes.hidden)
    down, of_down = filled(sizes.experts, sizes.hidden, sizes.inner)
    return Weights(gate_up, down, of_gate_up, of_down)


class Batch(NamedTuple):
    hidden: Tensor  # (T, H)
    weights: Tensor  # (T, K), of its experts
    experts: Tensor  # (T, K)


def batches(sizes: Sizes, tokens: int, count: int, dtype: torch.dtype, device: str) -> list[Batch]:
    """One of each group of experts for a token, the next in each for the batch that follows.

    So with as many batches as a group has experts, no weights of a token are read again before all
    others have been, and what they are read from is memory.
    """
    generator = torch.Generator().manual_seed(0)
    size = sizes.experts // sizes.top_k
    local = torch.randint(0, size, (tokens, sizes.top_k), generator=generator)
    first = torch.arange(0, sizes.experts, size)
    drawn = []
    for i in range(count):
        hidden = torch.randn(tokens, sizes.hidden, generator=generator)
        share = torch.rand(tokens, sizes.top_k, generator=generator) / sizes.top_k
        experts = (first + (local + i) % size).int()
        drawn.append(Batch(hidden.to(device, dtype), share.to(device), experts.to(device)))
    return drawn


class Turns:
    """Batches that take turns from call to call on the CPU; on a device one that is rewritten."""

    def __init__(self, sizes: Sizes, tokens: int, dtype: torch.dtype, device: str) -> None:
        number = sizes.experts // sizes.top_k if device == "cpu" else 1
        self.drawn = batches(sizes, tokens, max(ROTATED, 2 * number), dtype, device)
        self.now = [Batch(*(t.clone() for t in batch)) for batch in self.drawn[:number]]
        self.used: dict[str, Batch] = {}
        self.calls = 0

    def call(self, name: str, of: Callable[[Batch], object]) -> Callable[[], object]:
        @torch.inference_mode()
        def once() -> object:
            self.used[name] = self.now[self.calls % len(self.now)]
            self.calls += 1
            return of(self.used[name])

        return once

    def refresh(self, i: int) -> None:
        for j, batch in enumerate(self.now):
            drawn = self.drawn[(i * len(self.now) + j) % len(self.drawn)]
            for mine, new in zip(batch, drawn, strict=True):
                mine.copy_(new)

    @property
    def distinct(self) -> int:
        """Experts that a batch has: as many in each."""
        return len(self.drawn[0].experts.unique())


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = linear(x, gate_up).chunk(2, -1)
    return linear(silu(gate) * up, down)


def outputs(of: Weights, batch: Batch, token: int) -> Tensor:
    """Of a token's experts, ``(K, H)`` in float32."""
    x = batch.hidden[token].float()
    return torch.stack([swiglu(x, *of.of(e)) for e in batch.experts[token].tolist()])


def some_tokens(count: int) -> list[int]:
    return sorted({i * (count - 1) // (FEW - 1) for i in range(FEW)})


def assert_near(got: Tensor, expected: Tensor) -> None:
    """Up to what sums of 16-bit numbers differ by."""
    atol = 2.0**-5 * float(expected.abs().amax())
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=atol)


def build(
    sizes: Sizes, tokens: int, stored: torch.dtype, device: str, compiler: str | None
) -> Work:
    dtype = torch.bfloat16
    of = weights(sizes, stored, device)
    turns = Turns(sizes, tokens, dtype, device)
    scales = {"gate_up_scale": of.gate_up_scale, "down_scale": of.down_scale}

    def ordered(batch: Batch) -> triselect.Permutation:
        return triselect.permute(batch.experts, sizes.experts)

    orders = {id(batch): ordered(batch) for batch in turns.now}

    def ours(batch: Batch, backend: str = "auto") -> Tensor:
        source, _, offsets = orders[id(batch)]
        return triselect.grouped_swiglu(
            batch.hidden, *of[:2], offsets, source=source, backend=backend, **scales
        )

    def looped(batch: Batch) -> Tensor:
        source, _, offsets = orders[id(batch)]
        x = batch.hidden[source]
        parts = x.split(offsets.diff().tolist())
        return torch.cat(
            [swiglu(part, of.gate_up[e], of.down[e]) for e, part in enumerate(parts) if len(part)]
        )

    calls = {OURS: ours, "eager": partial(ours, backend="eager")}
    unavailable = {}
    if stored is not dtype:
        unavailable["loop"] = "PyTorch has no product with weights of 8 bits and scales"
    elif device != "cpu":
        unavailable["loop"] = "it waits for the device"
    else:
        calls["loop"] = looped

    def refresh(i: int) -> None:
        turns.refresh(i)
        for batch in turns.now:
            for mine, new in zip(orders[id(batch)], ordered(batch), strict=True):
                mine.copy_(new)

    def verify(provider: str, result: Tensor) -> None:
        batch = turns.used[provider]
        assert len(result) == tokens * sizes.top_k
        for token in some_tokens(tokens):
            rows = orders[id(batch)].slot_of[token].long()
            assert_near(result[rows], outputs(of, batch, token))

    return Work(
        calls={name: turns.call(name, call) for name, call in calls.items()},
        unavailable=unavailable,
        refresh=refresh,
        verify=verify,
        bytes=turns.distinct * of.nbytes // sizes.experts
        + tokens * sizes.hidden * dtype.itemsize * (1 + sizes.top_k),
        flops=6 * tokens * sizes.top_k * sizes.hidden * sizes.inner,
    )


def case(sizes: Sizes, tokens: int, stored: torch.dtype = torch.bfloat16) -> Case:
    label = sizes.label
    if stored is not torch.bfloat16:
        label += f", {str(stored).removeprefix('torch.')}"
    measured = {"tokens": tokens, "experts": sizes.experts, "hidden": sizes.hidden}
    return Case(label, measured, torch.bfloat16, partial(build, sizes, tokens, stored))


FLOAT8 = torch.float8_e4m3fn
CASES = [
    case(PANGU, 1),
    case(PANGU, 16),
    case(PANGU, 256),
    case(PANGU, 16, torch.int8),
    case(PANGU, 16, FLOAT8),
    case(SMALLER, 16),
    case(SMALLER, 256),
    case(SMALLER, 16, torch.int8),
]
TINY = [case(TINIEST, 3), case(TINIEST, 3, torch.int8), case(TINIEST, 20, FLOAT8)]


def small(name: str, counts: tuple[int, ...], dtype: torch.dtype, stored: torch.dtype) -> Small:
    """Rows of a few experts in both products, of small integers: their sums are exact."""
    hidden, inner = 136, 72

    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def integers(*shape: int) -> Tensor:
            return torch.randint(-2, 3, shape, generator=generator).float()

        rows = sum(counts) + 2
        source = torch.randint(0, rows, (rows,), generator=generator).int()
        source[-2:] = -1
        return [
            integers(rows, hidden).to(dtype),
            integers(rows, inner).to(dtype),
            integers(len(counts), 2 * inner, hidden).to(stored),
            integers(len(counts), hidden, inner).to(stored),
            torch.tensor((0, *counts)).cumsum(0).int(),
            source,
        ]

    def call(
        rows: Tensor,
        h: Tensor,
        gate_up: Tensor,
        down: Tensor,
        offsets: Tensor,
        source: Tensor,
        *,
        backend: str = "auto",
    ) -> list[Tensor]:
        scales = [
            rows.new_full(w.shape[:2], 0.5, dtype=torch.float32) if stored is torch.int8 else None
            for w in (gate_up, down)
        ]
        return [
            up(rows, gate_up, offsets, source, scales[0], backend),
            project(h, down, offsets, scales[1], backend),
        ]

    return Small(name, inputs, call)


SMALL = [
    small("a row of each", (1, 0, 1, 1), torch.bfloat16, torch.bfloat16),
    small("many rows", (40, 0, 17), torch.float16, torch.float16),
    small("int8", (2, 0, 21), torch.bfloat16, torch.int8),
]
