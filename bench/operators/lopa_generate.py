"""Puzzles solved by the shipped diffusion model, one after the other: what LoPA brings in time.

Ours looks ahead only as far as this device computes for nothing, `num_lookaheads="auto"`. Beside it
D2F, which is the same without lookaheads, LoPA that always looks ahead, and one token a round.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.device.records import OURS
from bench.operators.decode_round import OPERATORS, small_inputs, small_round
from bench.registry import ROTATED, Case, Small, Work
from triselect import lopa
from triselect.lopa import decoder as module
from triselect.models import MaskedDiffusion, load_masked_diffusion
from triselect.models.puzzles import BLOCK, EOS, LENGTH, MASK, VOCABULARY, Kind, puzzles

OPERATOR = OPERATORS[0]  # whose backend is named for all
WAYS: dict[str, dict[str, Any]] = {
    OURS: {"num_lookaheads": "auto", "threshold": 0.98},
    "D2F": {"num_lookaheads": 0, "threshold": 0.98},
    "LoPA, always 3 lookaheads": {"num_lookaheads": 3, "threshold": 0.98},
    "one by one": {"num_lookaheads": 0, "threshold": 1.0, "add_threshold": 1.0},
}


def model_of(size: str) -> MaskedDiffusion:
    if size == "shipped":
        return load_masked_diffusion()
    torch.manual_seed(0)
    tiny = MaskedDiffusion(VOCABULARY, width=32, layers=2, heads=2, max_length=128, eos_token=EOS)
    tiny.head.weight.data *= 8  # other prompts, other answers
    return tiny.eval()


def build(size: str, kind: Kind, batch: int, device: str, compiler: str | None) -> Work:
    model = model_of(size).to(device)
    drawn = puzzles(0, batch * ROTATED, kind).prompts.to(device)
    prompts = drawn[:batch].clone()
    configs = {
        name: lopa.Config(length=LENGTH[kind], block_length=BLOCK[kind], **settings)
        for name, settings in WAYS.items()
    }
    calls: dict[str, Callable[[], lopa.Generation]] = {
        name: partial(lopa.generate, model, prompts, config) for name, config in configs.items()
    }

    def verify(provider: str, result: lopa.Generation) -> None:
        """As with the operators in plain PyTorch, and as many lookaheads in each round."""
        assert not any((row == MASK).any() for row in result.tokens)
        decoder = lopa.Decoder(model, configs[provider])
        plain = {name: partial(getattr(lopa, name), backend="eager") for name in OPERATORS}
        with mock.patch.multiple(module, **plain), torch.inference_mode():
            state = decoder.begin(list(prompts))
            for width in result.state.widths:
                state = decoder.step(state, width)
        assert torch.equal(result.state.tokens, state.tokens)

    def refresh(i: int) -> Tensor:
        return prompts.copy_(drawn[i % ROTATED * batch :][:batch])

    return Work(
        calls=calls,
        unavailable={},
        refresh=refresh,
        verify=verify,
        bytes=sum(p.nbytes for p in model.parameters()),
        data="held-out puzzles",
    )


def case(size: str, kind: Kind, batch: int) -> Case:
    return Case(kind, {"puzzles": batch}, torch.float32, partial(build, size, kind, batch))


CASES = [case("shipped", kind, batch) for batch in (1, 16) for kind in ("latin", "letters")]
TINY = [case("tiny", "letters", 2)]
SMALL = [Small("a round", small_inputs, small_round)]
