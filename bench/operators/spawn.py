"""spawn against the same in PyTorch, compiled and not: nobody else has it as an operator."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.ops import Branches, Confidence, spawn

MASK, EOS = 126336, 126081  # LLaDA's


def state_of(
    sequences: int, length: int, window: int, block: int, generator: torch.Generator, device: str
) -> list[Tensor]:
    """Tokens, predictions, blocks added and start, in the midst of decoding: half is filled."""

    def integers(high: int, *shape: int) -> Tensor:
        found = torch.randint(0, high, shape, generator=generator, device=device)
        return found.to(torch.int32)

    start = integers((length - window) // block + 1, sequences) * block
    added = ((start + window) // block - 1).clamp_min(1)
    place = torch.arange(length, device=device)
    tokens, token = integers(EOS, sequences, length), integers(EOS, sequences, length)
    prob = torch.rand(sequences, length, generator=generator, device=device)
    score = torch.rand(sequences, length, generator=generator, device=device)
    waits = torch.rand(sequences, length, generator=generator, device=device) < 0.5
    waits |= place >= (added * block)[:, None]
    tokens[waits & (place >= start[:, None])] = MASK
    return [tokens, token, prob, score, added.int(), start]


def options_of(block: int, window: int, lookaheads: int) -> dict[str, Any]:
    return {
        "block_length": block,
        "window": window,
        "num_lookaheads": lookaheads,
        "mask_token": MASK,
        "eos_token": EOS,
        "add_at": max(1, block // 10),
        "activate_at": block - block // 20,
    }


def branches_of(inputs: list[Tensor], backend: str = "auto", **options: Any) -> Branches:
    tokens, token, prob, score, added, start = inputs
    predicted = Confidence(token, prob, score)
    return spawn(tokens, predicted, added, start, backend=backend, **options)


def assert_same(call: Any, provider: str, result: Branches) -> None:
    for mine, theirs in zip(result, call(), strict=True):
        assert torch.equal(mine, theirs)


def build(
    sequences: int,
    length: int,
    window: int,
    block: int,
    lookaheads: int,
    device: str,
    compiler: str | None,
) -> Work:
    generator = torch.Generator(device).manual_seed(0)
    sizes = (sequences, length, window, block)
    states = [state_of(*sizes, generator, device) for _ in range(ROTATED)]
    inputs = [x.clone() for x in states[0]]
    options = options_of(block, window, lookaheads)
    eager = partial(branches_of, inputs, "eager", **options)
    calls: dict[str, Any] = {OURS: lambda: branches_of(inputs, **options), "eager": eager}
    unavailable = {}
    if compiler:
        calls["torch.compile"] = compiled(compiler, inputs, options)
    else:
        unavailable["torch.compile"] = "there was no time to compile it"

    def refresh(i: int) -> None:
        for mine, new in zip(inputs, states[i % ROTATED], strict=True):
            mine.copy_(new)

    return Work(
        calls=calls,
        unavailable=unavailable,
        refresh=refresh,
        verify=partial(assert_same, eager),
        bytes=4 * sequences * (length + 3 * window) + sum(x.nbytes for x in eager()),
    )


def compiled(compiler: str, inputs: list[Tensor], options: dict[str, Any]) -> Any:
    """The eager kernel itself: behind the operator the compiler would see nothing of it."""
    from triselect.kernels.spawn import eager

    settings = (*options.values(), 0.9, 0.0)
    *sizes, add_at, activate_at, threshold, factor = settings
    rest = (threshold, factor, add_at, activate_at, "full", False)
    function = torch.compile(eager.spawn, backend=compiler)
    return lambda: function(*inputs, None, *sizes, *rest)


def case(sequences: int, length: int, window: int, block: int, lookaheads: int) -> Case:
    sizes = {
        "sequences": sequences,
        "positions": length,
        "window": window,
        "block": block,
        "lookaheads": lookaheads,
    }
    build_case = partial(build, *sizes.values())
    return Case("in the midst of decoding", sizes, torch.int32, build_case)


CASES = [
    case(1, 512, 128, 32, 4),
    case(16, 512, 128, 32, 4),
    case(64, 512, 128, 32, 4),
    case(1, 2048, 512, 64, 16),
]
TINY = [case(2, 24, 12, 4, 2)]


def small(name: str, length: int, block: int, window: int, k: int, **more: Any) -> Small:
    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return state_of(3, length, window, block, generator, "cpu")

    def call(*inputs: Tensor, backend: str = "auto") -> list[Tensor]:
        options = options_of(block, window, k) | more
        return list(branches_of(list(inputs), backend, **options))

    return Small(name, inputs, call)


SMALL = [
    small("blocks", 96, 12, 36, 3),
    small("shifted rows, by rank", 60, 20, 40, 5, shift=True, factor=1.0),
    small("a block", 70, 70, 70, 2, attention="bidirectional"),
]
