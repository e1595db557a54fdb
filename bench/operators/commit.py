"""commit against the same in PyTorch, compiled and not: nobody else has it as an operator."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect.ops import Branches, Committed, Confidence, commit

from .spawn import EOS, branches_of, options_of, state_of


def round_of(
    sequences: int,
    length: int,
    window: int,
    block: int,
    k: int,
    generator: torch.Generator,
    device: str,
) -> list[Tensor]:
    """The state, the branches spawned from it, and what a model might say of them."""
    state = state_of(sequences, length, window, block, generator, device)
    tokens, token, prob, score, _, start = state
    branches = branches_of(state, **options_of(block, window, k))
    shape = branches.tokens.shape
    new_token = torch.randint(0, EOS, shape, generator=generator, device=device).int()
    new = (torch.rand(shape, generator=generator, device=device) for _ in range(2))
    filled_at, filled_by = torch.zeros_like(tokens), torch.full_like(tokens, -1)
    return [
        *(tokens, token, prob, score, filled_at, filled_by, torch.ones_like(start), start),
        *(branches.tokens, branches.open, branches.extra, new_token, *new),
    ]


def committed(inputs: list[Tensor], backend: str = "auto", **options: Any) -> Committed:
    tokens, token, prob, score, filled_at, filled_by, step, start, *rest = inputs
    branch, is_open, extra, *new = rest
    # Of what `spawn` returned it takes these three.
    branches = Branches(branch, is_open, is_open, extra, start, start, start)
    before = (tokens, Confidence(token, prob, score), filled_at, filled_by, step, start)
    return commit(*before, branches, Confidence(*new), backend=backend, **options)


def flat(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [x for part in found for x in flat(part)]


def assert_same(call: Any, provider: str, result: Any) -> None:
    for mine, theirs in zip(flat(result), flat(call()), strict=True):
        assert torch.equal(mine, theirs)


def build(
    sequences: int,
    length: int,
    window: int,
    block: int,
    k: int,
    rule: str,
    device: str,
    compiler: str | None,
) -> Work:
    generator = torch.Generator(device).manual_seed(0)
    sizes = (sequences, length, window, block, k)
    rounds = [round_of(*sizes, generator, device) for _ in range(ROTATED)]
    inputs = [x.clone() for x in rounds[0]]
    eager = partial(committed, inputs, "eager", rule=rule, ratio=0.5)
    calls: dict[str, Any] = {
        OURS: partial(committed, inputs, rule=rule, ratio=0.5),
        "eager": eager,
    }
    unavailable = {}
    if compiler:
        calls["torch.compile"] = compiled(compiler, inputs, rule)
    else:
        unavailable["torch.compile"] = "there was no time to compile it"

    def refresh(i: int) -> None:
        for mine, new in zip(inputs, rounds[i % ROTATED], strict=True):
            mine.copy_(new)

    return Work(
        calls=calls,
        unavailable=unavailable,
        refresh=refresh,
        verify=partial(assert_same, eager),
        bytes=2 * 24 * sequences * length + sum(x.nbytes for x in inputs[8:]),
    )


def compiled(compiler: str, inputs: list[Tensor], rule: str) -> Any:
    """The eager kernel itself: behind the operator the compiler would see nothing of it."""
    from triselect.kernels.commit import eager

    function = torch.compile(eager.commit, backend=compiler)
    return lambda: function(*inputs, None, rule, 0.5, 0.9, False, False)


def case(
    sequences: int, length: int, window: int, block: int, lookaheads: int, rule: str = "mean"
) -> Case:
    sizes = {
        "sequences": sequences,
        "positions": length,
        "window": window,
        "block": block,
        "lookaheads": lookaheads,
    }
    return Case(rule, sizes, torch.float32, partial(build, *sizes.values(), rule))


CASES = [
    case(1, 512, 128, 32, 4),
    case(16, 512, 128, 32, 4),
    case(64, 512, 128, 32, 4),
    case(1, 512, 128, 32, 4, "lowest"),
    case(1, 512, 128, 32, 4, "log_prob"),
    case(1, 2048, 512, 64, 16),
]
TINY = [case(2, 24, 12, 4, 2), case(2, 24, 12, 4, 2, "lowest")]


def small(rule: str, **more: Any) -> Small:
    def inputs(seed: int) -> list[Tensor]:
        return round_of(3, 96, 36, 12, 3, torch.Generator().manual_seed(seed), "cpu")

    def call(*inputs: Tensor, backend: str = "auto") -> list[Tensor]:
        return flat(committed(list(inputs), backend, rule=rule, **more))

    return Small(rule, inputs, call)


SMALL = [
    small("mean", shift=True),
    small("lowest", ratio=0.3),
    small("count"),
    small("common_mean", released=True),
]
