"""A whole step of ESA, from queries to output: compress, score, select, gather, attend.

Against dense attention by our own kernel, which reads the cache as fast as this library can, SDPA,
and the same step as one composes it from torch operators. Llama-3-8B: 32 query heads, 8 key heads
of 128 numbers; 128 initial, 2048 selected, 4096 local tokens, keys compressed to 128 numbers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect import esa

HEADS, GROUPS, DIM, COMPRESSED = 32, 8, 128, 128
INITIAL, SELECTED, LOCAL = 128, 2048, 4096
UNCACHED = 2**28  # bytes of compressed keys that take turns, so that no call finds its own cached


class Budget(NamedTuple):
    """Tokens of a step, and numbers of a compressed key."""

    initial: int = INITIAL
    selected: int = SELECTED
    local: int = LOCAL
    compressed: int = COMPRESSED


class Layer(NamedTuple):
    """What one layer has cached of N tokens, the last of which are the step's own."""

    k: Tensor  # (1, N, G, D)
    v: Tensor
    keys: esa.Compressed  # (1, N, E)


class Step(NamedTuple):
    """Tensors that do not depend on the layer; queries and own keys are written by `refresh`."""

    q: Tensor  # (1, C, H, D)
    own: Tensor  # (1, C, G, D), the step's own keys
    slots: Tensor  # (1, C), where these go
    map_q: Tensor
    map_k: Tensor
    start: Tensor  # (1,): where the local tokens begin
    first: Tensor  # (1,): where the middle begins
    budget: Budget


def layer(tokens: int, key_dtype: torch.dtype, budget: Budget, seed: int, device: str) -> Layer:
    """Random numbers, the same block over and over in turned order: drawing them all takes long."""
    generator = torch.Generator(device).manual_seed(seed)

    def filled(*shape: int) -> Tensor:
        block = torch.randn(2**21, generator=generator, device=device).to(torch.bfloat16)
        whole = torch.empty(shape, dtype=torch.bfloat16, device=device)
        for i, part in enumerate(whole.view(-1).split(len(block))):
            part.copy_(block.roll(7919 * i)[: len(part)])
        return whole

    keys = filled(1, tokens, budget.compressed)
    scale = None
    if key_dtype is torch.int8:
        scale = torch.rand(1, tokens, generator=generator, device=device) / 40
        keys = (keys.float() * 40).clamp(-127, 127).to(torch.int8)
    shape = (1, tokens, GROUPS, DIM)
    return Layer(filled(*shape), filled(*shape), esa.Compressed(keys, scale))


def esa_step(s: Step, of: Layer, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """The step by our operators: what it attends to, and which tokens it selected."""
    esa.compress(s.own, s.map_k, out=of.keys, slots=s.slots, backend=backend)
    q = esa.compress(s.q, s.map_q, backend=backend).values
    scores = esa.token_scores(
        q, of.keys.values, k_scale=of.keys.scale, start=s.first, end=s.start, backend=backend
    )
    index = esa.select_tokens(
        scores, s.budget.selected, start=s.first, end=s.start, backend=backend
    )
    attended = esa.selected_attention(
        *(s.q, s.q, of.k, of.v, index),
        num_initial=s.budget.initial,
        start=s.start,
        backend=backend,
    )
    return attended.out, index


def composed(s: Step, of: Layer) -> tuple[Tensor, Tensor]:
    """The decoding step from torch operators, as one writes it without a library for it."""
    tokens, keys = of.k.shape[1], of.keys.values
    middle = slice(s.budget.initial, tokens - s.budget.local)
    keys[:, s.slots[0]] = s.own.flatten(2) @ s.map_k.T
    q = s.q.unflatten(2, (GROUPS, -1)).sum(3).flatten(2) @ s.map_q.T
    scores = keys[0, middle] @ q[0, 0]
    index = scores.topk(s.budget.selected).indices.sort().values + s.budget.initial
    initial = torch.arange(s.budget.initial, device=index.device)
    local = torch.arange(tokens - s.budget.local, tokens, device=index.device)
    read = torch.cat((initial, index, local))
    return attention_of_torch(s.q, of.k[:, read], of.v[:, read]), index[None].int()


def dense(s: Step, of: Layer) -> tuple[Tensor, None]:
    return esa.window_attention(s.q, of.k, of.v).out, None


def attention_of_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SDPA, the query heads of a key head as its queries where they are of one token: it reads the
    cache once then, and otherwise once for every query head.
    """
    chunk, tokens = q.shape[1], k.shape[1]
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if chunk == 1:
        packed = q.view(len(q), GROUPS, -1, q.shape[3])
        return torch.nn.functional.scaled_dot_product_attention(packed, k, v).view(q.shape)
    mask = torch.ones(chunk, tokens, dtype=torch.bool, device=q.device).tril(tokens - chunk)
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, mask, enable_gqa=True
    )
    return out.transpose(1, 2)


def sdpa(s: Step, of: Layer) -> tuple[Tensor, None]:
    return attention_of_torch(s.q, of.k, of.v), None


def assert_attended(s: Step, of: Layer, provider: str, result: tuple[Tensor, Any]) -> None:
    """ESA's: attention over what it selected, which is nearly what eager selects. Dense: SDPA's.

    Nearly, as scores differ in their last bits; composed ones are rounded to 8 of them.
    """
    out, index = result
    if index is None:
        assert_near(out, sdpa(s, of)[0])
        return
    _, expected = esa_step(s, of, "eager")
    same = torch.isin(index, expected[expected >= 0]).sum()
    assert same >= (0.999 if provider == OURS else 0.9) * (expected >= 0).sum()
    again = esa.selected_attention(
        *(s.q, s.q, of.k, of.v, index),
        num_initial=s.budget.initial,
        start=s.start,
        backend="eager",
    )
    assert_near(out, again.out)


def assert_near(got: Tensor, expected: Tensor) -> None:
    """Up to what bfloat16 outputs of means over thousands of values differ by."""
    difference = (got.float() - expected.float()).abs().max()
    assert difference <= 0.02 * expected.float().abs().max(), difference


def build(
    tokens: int,
    chunk: int,
    key_dtype: torch.dtype,
    budget: Budget,
    device: str,
    compiler: str | None,
) -> Work:
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, by: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, device=device) * by).to(torch.bfloat16)

    number = 1 if device != "cpu" else max(2, min(8, UNCACHED // (tokens * COMPRESSED * 2)))
    layers = [layer(tokens, key_dtype, budget, i, device) for i in range(number)]
    queries, keys = normal(ROTATED, chunk, HEADS, DIM), normal(ROTATED, chunk, GROUPS, DIM)
    width = GROUPS * DIM
    s = Step(
        q=queries[:1].clone(),
        own=keys[:1].clone(),
        slots=torch.arange(tokens - chunk, tokens, device=device)[None],
        map_q=normal(budget.compressed, width, by=width**-0.5),
        map_k=normal(budget.compressed, width, by=width**-0.5),
        start=torch.tensor([tokens - chunk + 1 - budget.local], device=device),
        first=torch.tensor([budget.initial], device=device),
        budget=budget,
    )
    turn, used = [0], {}

    def taking_turns(name: str, call: Callable[[Step, Layer], Any]) -> Callable[[], Any]:
        def once() -> Any:
            turn[0] += 1
            used[name] = layers[turn[0] % number]
            return call(s, used[name])

        return once

    calls: dict[str, Callable[[Step, Layer], Any]] = {OURS: esa_step, "dense (ours)": dense}
    unavailable = {}
    calls["SDPA"] = sdpa
    if chunk == 1 and key_dtype is torch.bfloat16:
        calls["ESA from torch"] = composed
    else:
        unavailable["ESA from torch"] = "it is written for one query and bfloat16 keys"

    def refresh(i: int) -> None:
        s.q.copy_(queries[i % ROTATED])
        s.own.copy_(keys[i % ROTATED])

    attended = min(tokens, budget.initial + budget.selected + budget.local + chunk - 1)
    middle = max(0, tokens - chunk + 1 - budget.local - budget.initial)
    each = budget.compressed * key_dtype.itemsize + (4 if key_dtype is torch.int8 else 0)
    work = 2 * chunk * budget.compressed * (middle * (1 if chunk == 1 else 2) + 2 * width)
    return Work(
        calls={name: taking_turns(name, call) for name, call in calls.items()},
        unavailable=unavailable,
        refresh=refresh,
        verify=lambda provider, result: assert_attended(s, used[provider], provider, result),
        bytes=middle * each + attended * 4 * width + s.map_q.nbytes + s.map_k.nbytes,
        flops=work + 4 * chunk * attended * HEADS * DIM,
    )


def case(
    tokens: int,
    chunk: int = 1,
    key_dtype: torch.dtype = torch.bfloat16,
    budget: Budget | None = None,
) -> Case:
    label = "decoding step" if chunk == 1 else "prefill chunk"
    if key_dtype is torch.int8:
        label += ", int8 keys"
    sizes = {"tokens": tokens, "queries": chunk}
    build_case = partial(build, tokens, chunk, key_dtype, budget or Budget())
    return Case(label, sizes, torch.bfloat16, build_case)


CASES = [
    case(131072),
    case(32768),
    case(131072, key_dtype=torch.int8),
    case(16384),
    case(8192),
    case(65536),
    case(65536, chunk=512),
]
TINY = [
    case(600, budget=Budget(4, 32, 64, 16)),
    case(600, chunk=5, key_dtype=torch.int8, budget=Budget(4, 32, 64, 16)),
]


def small(name: str, chunk: int, rotate: bool) -> Small:
    """Far and local tokens of a short cache, of two sequences."""
    tokens, listed, groups, dim = 90, 12, 2, 32

    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        q_far, q = torch.randn(2, 2, chunk, 6, dim, generator=generator).unbind()
        k, v = torch.randn(2, 2, tokens, groups, dim, generator=generator).unbind()
        chosen = [torch.randperm(60, generator=generator)[:listed].sort().values for _ in range(2)]
        angles = torch.randn(tokens, dim // 2, generator=generator)
        return [q_far, q, k, v, torch.stack(chosen).int(), angles.cos(), angles.sin()]

    def call(
        q_far: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        index: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        backend: str = "auto",
    ) -> esa.Attention:
        start, end = torch.tensor([[50, 70], [80, 90]], device=q.device).unbind()
        turned = {"cos": cos, "sin": sin} if rotate else {}
        return esa.selected_attention(
            q_far, q, k, v, index, num_initial=3, start=start, end=end, backend=backend, **turned
        )

    return Small(name, inputs, call)


SMALL = [small("a token", 1, rotate=True), small("a chunk", 7, rotate=False)]
