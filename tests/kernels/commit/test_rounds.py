"""`spawn` and `commit`, round after round, around a model that says anything."""

import numpy as np
import pytest
import torch

from triselect.ops import Confidence, commit, spawn

from ..backends import flat, over_backends
from ..spawn.cases import EOS, KINDS, MASK

BATCH, BLOCKS, SIZE, IN_WINDOW = 5, 6, 4, 3
LENGTH, WINDOW = BLOCKS * SIZE, IN_WINDOW * SIZE


def predictions(seed: int, step: int, shape: tuple[int, ...], kind: str) -> Confidence:
    """Of a round, the same for every sequence and branch count."""
    rng = np.random.default_rng((seed, step))
    token = rng.integers(0, MASK - 1, shape)
    token[rng.random(shape) < 0.02] = EOS
    prob, score = (KINDS[kind](rng, shape) for _ in range(2))
    return Confidence(*map(torch.from_numpy, (token.astype(np.int32), prob, score)))


def rounds(tensors, k, kind, seed, attention, rule, shift, backend):
    """The states of a run, from nothing filled until all is."""
    tokens, filled_at, filled_by, added, start = tensors
    whole = WINDOW if attention != "bidirectional" else LENGTH
    predicted = predictions(seed, 0, (BATCH, LENGTH), kind)
    predicted.token[:, SIZE:] = -1  # there is one block
    predicted = Confidence(*(x.to(tokens.device) for x in predicted))
    states = []
    for step in range(1, 4 * LENGTH):
        branches = spawn(
            tokens,
            predicted,
            added,
            start,
            block_length=SIZE,
            window=whole,
            num_lookaheads=k,
            mask_token=MASK,
            eos_token=EOS,
            add_at=1,
            activate_at=SIZE,
            attention=attention,
            shift=shift,
            backend=backend,
        )
        new = predictions(seed, step, (BATCH, k + 1, whole), kind)
        got = commit(
            tokens,
            predicted,
            filled_at,
            filled_by,
            torch.full_like(start, step),
            start,
            branches,
            Confidence(*(x.to(tokens.device) for x in new)),
            rule=rule,
            ratio=0.5,
            shift=shift,
            backend=backend,
        )
        states.append((branches, got))
        tokens, predicted, filled_at, filled_by = got[:4]
        added, start = branches.added, branches.start
        if not is_open(tokens).any():
            return states
    raise AssertionError("it does not end")


def is_open(tokens):
    return (tokens == MASK) & ((tokens == EOS).cumsum(-1) == 0)


def run(backend, k=3, kind="normal", seed=0, attention="full", rule="mean", shift=False):
    tokens = torch.full((BATCH, LENGTH), MASK, dtype=torch.int32)
    each = torch.zeros(BATCH, dtype=torch.int32)
    start = (tokens, torch.zeros_like(tokens), torch.full_like(tokens, -1), each + 1, each)
    return backend(start, k, kind, seed, attention, rule, shift)


class Run:
    """`rounds` by a backend of `over_backends`, on its device."""

    def __init__(self, backend):
        self.backend = backend

    def __call__(self, tensors, *args):
        states = rounds([self.backend.put(x) for x in tensors], *args, self.backend.name)
        return [self.backend._back(state) for state in states]


every_backend = over_backends(rounds, "spawn", "commit")
every_attention = pytest.mark.parametrize("attention", ["full", "block_causal", "bidirectional"])


@every_backend
@every_attention
@pytest.mark.parametrize("kind", ["normal", "few values", "nothing finite", "sure"])
@pytest.mark.parametrize("k", [0, 4])
def test_every_round_fills_and_nothing_filled_changes(backend, k, kind, attention):
    """Of each sequence, until it is done; then it stays."""
    states = run(Run(backend), k, kind, attention=attention)
    before = torch.full((BATCH, LENGTH), MASK, dtype=torch.int32)
    for step, (branches, got) in enumerate(states, 1):
        filled = got.tokens != before
        assert torch.equal(filled.any(1), is_open(before).any(1))
        assert (before[filled] == MASK).all()
        assert (got.filled_at[filled] == step).all()
        live = torch.cat((torch.ones(BATCH, 1, dtype=torch.bool), branches.extra[:, 1:] >= 0), 1)
        assert (got.worth[:, :1] <= got.worth.amax(1, keepdim=True)).all()
        assert live.gather(1, got.winner[:, None].long()).all()
        own = filled & (got.filled_by > 0)
        assert (own.sum(1) <= 1).all()
        before = got.tokens
    assert torch.equal(got.filled_by >= 0, got.filled_at > 0)


@every_backend
@every_attention
@pytest.mark.parametrize("shift", [False, True])
def test_a_run_is_that_of_the_reference(backend, shift, attention):
    def by_reference(tensors, *args):
        return rounds(tensors, *args, "reference")

    for seed, rule in enumerate(("mean", "lowest", "information_gain", "common_mean")):
        options = {"seed": seed, "attention": attention, "rule": rule, "shift": shift}
        mine, theirs = run(Run(backend), **options), run(by_reference, **options)
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            for a, b in zip(flat(one), flat(other), strict=True):
                assert torch.equal(a, b)


@every_backend
def test_predictions_are_for_open_positions(backend):
    """After a round each position to fill in the pipeline has one, and no other has."""
    for branches, got in run(Run(backend)):
        place = torch.arange(LENGTH)
        reach = place < branches.added[:, None] * SIZE
        assert torch.equal(got.predicted.token >= 0, is_open(got.tokens) & reach)
