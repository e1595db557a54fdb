"""A round of LoPA, by part: what it costs beside the model that it runs.

Ours is the round; its parts are timed alone, and beside it the same round without lookaheads.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.device.records import OURS
from bench.registry import ROTATED, Case, Small, Work
from triselect import lopa
from triselect.lopa import decoder as module
from triselect.models.masked_diffusion import MaskedDiffusion
from triselect.report.results_operators import PART

OPERATORS = ("spawn", "token_confidence", "commit")
OPERATOR = OPERATORS[0]  # whose backend is named for all
DREAM: dict[str, dict[str, int]] = {  # what differs from the published configuration
    "Dream-7B": {},
    "Dream, tiny": {
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 66},
        **{"num_attention_heads": 4, "num_key_value_heads": 2},
        **{"mask_token_id": 65, "eos_token_id": 64},
    },
}


def model_of(kind: str, device: str) -> Any:
    if kind == "toy":
        return lopa.ToyDenoiser(64, device=device)
    torch.manual_seed(0)
    if kind in DREAM:
        from transformers import AutoModelForCausalLM

        from triselect import hf

        config = hf.dream_config(**DREAM[kind])
        with torch.device(device):
            made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        return hf.as_denoiser(made.eval())
    return MaskedDiffusion(64).to(device).eval()


def weights(model: Any) -> list[Tensor]:
    if isinstance(model, lopa.ToyDenoiser):
        return [model.embedding]
    parts = [model] if isinstance(model, MaskedDiffusion) else [model.decoder, model.head]
    return [parameter for part in parts for parameter in part.parameters()]


def tensors(x: Any) -> list[Tensor]:
    """All in a nested tuple but the cache."""
    if isinstance(x, lopa.State):
        x = x._replace(cache=None)
    if isinstance(x, tuple):
        return [leaf for part in x for leaf in tensors(part)]
    return [x] if isinstance(x, Tensor) else []


def build(kind: str, lookaheads: int, open_blocks: int, device: str, compiler: str | None) -> Work:
    model = model_of(kind, device)
    config = lopa.Config(
        length=256, block_length=32, open_blocks=open_blocks, num_lookaheads=lookaheads
    )
    decoder = lopa.Decoder(model, config)
    prompt = torch.randint(0, 63, (64,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        states = [decoder.begin([prompt])]
        for _ in range(2 * ROTATED):  # away from the first block, where little is open
            states.append(decoder.step(states[-1]))
        states = states[-ROTATED:]
        branches = [decoder._spawn(s, lookaheads) for s in states]
        logits = [decoder._logits(s, b) for s, b in zip(states, branches, strict=True)]
        new = [
            decoder._confidence(x, b.asked, s)
            for x, b, s in zip(logits, branches, states, strict=True)
        ]
    now = [0]

    def at(call: Callable[[int], Any]) -> Callable[[], Any]:
        @torch.inference_mode()
        def once() -> Any:
            return call(now[0])

        return once

    calls = {
        OURS: at(lambda i: decoder.step(states[i])),
        PART + "model": at(lambda i: decoder._logits(states[i], branches[i])),
        "no lookaheads": at(lambda i: decoder.step(states[i], 0)),
        PART + "spawn": at(lambda i: decoder._spawn(states[i], lookaheads)),
        PART + "token_confidence": at(
            lambda i: decoder._confidence(logits[i], branches[i].asked, states[i])
        ),
        PART + "commit": at(lambda i: decoder._commit(states[i], branches[i], new[i])),
    }

    def verify(provider: str, result: Any) -> None:
        """As with the operators in plain PyTorch."""
        plain = {name: partial(getattr(lopa, name), backend="eager") for name in OPERATORS}
        with mock.patch.multiple(module, **plain):
            expected = calls[provider]()
        for mine, other in zip(tensors(result), tensors(expected), strict=True):
            torch.testing.assert_close(mine, other)

    def refresh(i: int) -> None:
        now[0] = i % ROTATED

    return Work(
        calls=calls,
        unavailable={},
        refresh=refresh,
        verify=verify,
        bytes=sum(p.nbytes for p in weights(model)),
        data="a random model",
    )


def case(kind: str, lookaheads: int, open_blocks: int = 2) -> Case:
    dtype = torch.bfloat16 if kind in DREAM else torch.float32
    built = partial(build, kind, lookaheads, open_blocks)
    return Case(kind, {"lookaheads": lookaheads}, dtype, built)


CASES = [case("0.8 M parameters", 4), case("0.8 M parameters", 0), case("toy", 4)]
# 4 branches of 64 positions, to be hardly slower than one. 14 GB of weights are none for a CPU.
ON_GPU = [case("Dream-7B", 3, open_blocks=1)]
TINY = [case("toy", 2), case("Dream, tiny", 2)]


def small_inputs(seed: int) -> list[Tensor]:
    """Two sequences of two blocks of four, the first half filled, and logits of three branches."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 9, (2, 8), generator=generator).int()
    tokens[:, 2:] = 9
    token = torch.randint(0, 9, (2, 8), generator=generator).int()
    prob, score = torch.rand(2, 2, 8, generator=generator).unbind()
    return [tokens, token, prob, score, torch.randn(2 * 3 * 8, 10, generator=generator)]


def small_round(
    tokens: Tensor,
    token: Tensor,
    prob: Tensor,
    score: Tensor,
    logits: Tensor,
    *,
    backend: str = "auto",
) -> list[Tensor]:
    predicted = lopa.Confidence(token, prob, score)
    none = torch.zeros_like(tokens)
    branches = lopa.spawn(
        tokens,
        predicted,
        none[:, 0] + 2,
        none[:, 0],
        block_length=4,
        window=8,
        num_lookaheads=2,
        mask_token=9,
        add_at=1,
        activate_at=3,
        backend=backend,
    )
    new = lopa.token_confidence(
        logits, mask_token=9, rows=branches.asked.flatten(), backend=backend
    )
    done = lopa.commit(
        tokens, predicted, none, none, none[:, 0] + 1, none[:, 0], branches, new, backend=backend
    )
    return tensors(done)


SMALL = [Small("a round", small_inputs, small_round)]
