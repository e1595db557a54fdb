"""Toy models and settings that decoding is tested on."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from triselect.lopa import Config, Decoder, State, ToyDenoiser


def toy(rng: np.random.Generator, **options: Any) -> ToyDenoiser:
    """Exact integers in float64; some end texts early, some never."""
    given = {
        "vocab_size": int(rng.integers(4, 20)),
        "shift": bool(rng.integers(2)),
        "eos_token": rng.choice([None, 0, 1]),
        "seed": int(rng.integers(100)),
        "sharpness": float(rng.choice([0.25, 1, 3])),
    }
    return ToyDenoiser(**(given | options))


def settings(rng: np.random.Generator, **options: Any) -> Config:
    block = int(rng.choice([1, 2, 4, 5, 8]))
    attention = str(rng.choice(["full", "block_causal", "bidirectional"]))
    given = {
        "length": block * int(rng.integers(1, 6)),
        "block_length": block,
        "num_lookaheads": int(rng.integers(0, 5)),
        "threshold": float(rng.choice([0.3, 0.6, 0.9, 1.0])),
        "factor": rng.choice([None, None, 0.5, 1.5]),
        "add_threshold": float(rng.choice([0, 0.1, 0.5, 1])),
        "activate_threshold": float(rng.choice([0.5, 0.95, 1])),
        "open_blocks": int(rng.integers(1, 4)),
        "attention": attention,
        "cache": attention != "bidirectional",
        "score": str(rng.choice(["max_prob", "margin", "neg_entropy"])),
        "confirm": rng.choice([None, None, 0.0, 0.5, 0.8]),
    } | options
    if given["attention"] == "bidirectional":
        given["cache"] = False
    return Config(**given)


def prompts(rng: np.random.Generator, model: ToyDenoiser, count: int | None = None) -> list[Tensor]:
    """Of different lengths; empty ones where the model can do without."""
    count = count or int(rng.integers(1, 4))
    lengths = rng.integers(int(model.shift), 9, count)
    return [torch.from_numpy(rng.integers(0, model.mask_token, n)) for n in lengths]


def rounds(decoder: Decoder, state: State, **options: Any) -> list[State]:
    """All states of a run, until every sequence is done."""
    states = [state]
    while not decoder.done(states[-1]).all():
        states.append(decoder.step(states[-1], **options))
        assert len(states) <= decoder.config.length + 1, "a round filled nothing"
    return states


def assert_same(a: State, b: State) -> None:
    """All that is compact, to the bit."""
    for name in State._fields:
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, Tensor):
            assert torch.equal(x, y), name
    for x, y, name in zip(a.predicted, b.predicted, a.predicted._fields, strict=True):
        assert torch.equal(x, y), name
