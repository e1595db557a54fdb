"""What the tests of spawn feed it: rounds in any state of decoding, whose numbers tie often."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from triselect.kernels.spawn import reference

from triselect.ops import Branches, Confidence, spawn

from ..backends import flat, over_backends

MASK, EOS = 12, 11
ATTENTIONS = ("full", "block_causal", "bidirectional")
# Of two numbers between which float32 has no other, and what no comparison may trip over.
VALUES = np.float32([0, 0.25, 0.5, 0.9, np.nextafter(np.float32(0.9), 1), 1, -np.inf, np.nan, -0.0])


def distinct(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """No two are equal, so that the order of positions decides nothing."""
    size = int(np.prod(shape))
    return ((rng.permutation(size) + 1) / (size + 1)).astype(np.float32).reshape(shape)


KINDS = {
    "normal": lambda rng, shape: rng.random(shape, np.float32),
    "distinct": distinct,
    "sure": lambda rng, shape: 1 - rng.random(shape, np.float32) ** 4 / 4,
    "few values": lambda rng, shape: rng.choice(VALUES, shape),
    "all equal": lambda rng, shape: np.full(shape, 0.5, np.float32),
    "entropies": lambda rng, shape: -(rng.random(shape, np.float32) ** 4) * 12,
    "nothing finite": lambda rng, shape: rng.choice(VALUES[-3:-1], shape),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_attention = pytest.mark.parametrize("attention", ATTENTIONS)


class Round(NamedTuple):
    """The tensors of a call, and its options."""

    tokens: Tensor
    predicted: Confidence
    added: Tensor
    start: Tensor
    options: dict[str, Any]

    def but(self, **options: Any) -> "Round":
        return self._replace(options=self.options | options)

    def of(self, which: Any) -> "Round":
        """Some of the sequences."""
        predicted = Confidence(*(x[which] for x in self.predicted))
        return Round(
            self.tokens[which], predicted, self.added[which], self.start[which], self.options
        )


def a_round(
    rng: np.random.Generator,
    batch: int = 3,
    blocks: int = 4,
    block_length: int = 4,
    in_window: int = 3,
    *,
    kind: str = "normal",
    filled: float = 0.4,
    ended: float = 0.1,
    unknown: float = 0.1,
    prefilled: float = 0.0,
    **options: Any,
) -> Round:
    """Of sequences that are anywhere in decoding. Positions are `filled`, those behind the pipeline
    `prefilled`, a sequence has `ended`, and nothing was predicted (`unknown`), with these
    probabilities.
    """
    in_window = min(in_window, blocks)
    length, window = blocks * block_length, in_window * block_length
    start = rng.integers(0, blocks + 1, batch)
    if options.get("attention") == "bidirectional":
        start *= 0
    added = np.minimum(start + rng.integers(0, in_window + 1, batch), blocks)

    tokens = rng.integers(0, MASK - 1, (batch, length))
    place = np.arange(length)
    behind = place >= (added * block_length)[:, None]
    unfilled = rng.random(tokens.shape) >= np.where(behind, prefilled, filled)
    tokens[unfilled & (place >= (start * block_length)[:, None])] = MASK
    for row in tokens:
        if rng.random() < ended:
            row[rng.integers(length)] = EOS
    token = rng.integers(0, MASK - 1, tokens.shape)
    token[rng.random(tokens.shape) < ended] = EOS
    token[rng.random(tokens.shape) < unknown] = -1
    integers = (tokens, token, added, start * block_length)
    tokens, token, added, start = (torch.from_numpy(x.astype(np.int32)) for x in integers)
    prob, score = (torch.from_numpy(KINDS[kind](rng, tuple(tokens.shape))) for _ in range(2))
    return Round(
        tokens,
        Confidence(token, prob, score),
        added,
        start,
        {
            "block_length": block_length,
            "window": window,
            "num_lookaheads": 3,
            "mask_token": MASK,
            "eos_token": EOS,
            "threshold": 0.9,
            "factor": 0.0,
            "add_at": 1,
            "activate_at": max(1, block_length - 1),
            "attention": "full",
            "shift": False,
        }
        | options,
    )


def by_reference(given: Round) -> Branches:
    args = (given.tokens, *given.predicted, given.added, given.start)
    threshold = given.options["threshold"]
    thresholds = threshold.numpy() if isinstance(threshold, Tensor) else None
    found = reference.spawn(*(x.numpy() for x in args), thresholds, **given.options)
    return Branches(*map(torch.from_numpy, found))


def assert_as_the_reference(got: Branches, given: Round) -> None:
    for name, mine, theirs in zip(Branches._fields, got, by_reference(given), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), name
        assert torch.equal(mine, theirs), name


def call(
    tokens: Tensor,
    token: Tensor,
    prob: Tensor,
    score: Tensor,
    added: Tensor,
    start: Tensor,
    **options: Any,
) -> Branches:
    return spawn(tokens, Confidence(token, prob, score), added, start, **options)


def run(backend: Any, given: Round) -> Branches:
    return backend(*flat(given[:4]), **given.options)


every_backend = over_backends(call, "spawn")
