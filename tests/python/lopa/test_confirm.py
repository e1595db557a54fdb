"""Lookaheads that the anchor confirms, and those that it does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from triselect.lopa import Branches, Confidence, Config, Decoder, ToyDenoiser
from triselect.lopa.confirm import keep_confirmed

from .cases import prompts, rounds, settings, toy
from .oracle import assert_as_the_oracle


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_the_oracle(seed, shift):
    """Few tokens, so that the anchor says the same by chance, and is as sure of it at times."""
    rng = np.random.default_rng(seed)
    model = toy(rng, vocab_size=int(rng.integers(3, 6)), shift=shift, sharpness=1.0)
    config = settings(
        rng,
        length=24,
        block_length=int(rng.choice([2, 4, 8])),
        num_lookaheads=4,
        attention="full",
        confirm=float(rng.choice([0.0, 0.4, 0.6])),
    )
    assert_as_the_oracle(Decoder(model, config), prompts(rng, model))


def test_it_is_between_all_lookaheads_and_none():
    model = ToyDenoiser(8, sharpness=0.25)
    shared = Config(length=24, block_length=8, num_lookaheads=4, threshold=0.9)
    given = [torch.full((n,), 1) for n in range(20)]
    won = []
    for confirm in (None, 0.0, 0.4, 1.0):
        decoder = Decoder(model, replace(shared, confirm=confirm))
        done = rounds(decoder, decoder.begin(given))[-1]
        won.append(int((done.filled_by > 0).sum()))
    assert won[0] > won[1] > won[2] > won[3] == 0


# One sequence, a window of 4 that begins at 2, and lookaheads at 2, 3 and 5.
OWN = {2: 10, 3: 11, 5: 13}


def some(at_row: dict[int, tuple[int, float]], shift: bool) -> list[int]:
    """The positions of those that are kept; `at_row` is what the anchor's rows predict."""
    tokens = torch.full((1, 4, 4), 99, dtype=torch.int32)
    for j, (at, own) in enumerate(OWN.items(), 1):
        tokens[0, j, at - 2] = own
    extra = torch.tensor([[-1, *OWN]], dtype=torch.int32)
    token, prob = torch.full((1, 4, 4), -1, dtype=torch.int32), torch.zeros(1, 4, 4)
    token[:, 1:], prob[:, 1:] = 12, 1.0  # what the others say does not count
    for row, (said, sure) in at_row.items():
        token[0, 0, row], prob[0, 0, row] = said, sure
    before = torch.tensor([[0, 0, 10, 11, 12, 13]], dtype=torch.int32)
    old = Confidence(before, torch.full((1, 6), 0.75), torch.zeros(1, 6))
    start, none = torch.tensor([2], dtype=torch.int32), torch.zeros(1)
    branches = Branches(tokens, tokens == 99, tokens == 99, extra, none, none, start + 2)
    kept = keep_confirmed(branches, Confidence(token, prob, prob), old, start, 0.75, shift)
    assert all(x is y for x, y in zip(kept[:3], branches[:3], strict=True))
    assert kept.extra[0, 0] == -1
    assert kept.extra.dtype == torch.int32
    return [at for at in kept.extra[0].tolist() if at >= 0]


def test_same_token_and_as_sure_as_asked():
    assert some({0: (10, 0.75), 1: (11, 0.8), 3: (13, 1.0)}, shift=False) == [2, 3, 5]
    assert some({0: (10, 0.7499), 1: (12, 1.0), 3: (13, 0.9)}, shift=False) == [5]
    assert some({}, shift=False) == []  # nothing was asked: an end of text came before


def test_shifted_rows_predict_the_next_position():
    # The first position has no row: what was predicted before stands.
    assert some({0: (11, 0.75), 2: (13, 0.75)}, shift=True) == [2, 3, 5]
    assert some({0: (10, 1.0), 1: (11, 1.0), 3: (13, 1.0)}, shift=True) == [2]
