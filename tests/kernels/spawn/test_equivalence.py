"""Every backend makes the branches that the reference makes: sizes, ties, rules, attentions."""

import numpy as np
import pytest
import torch

from ..backends import LAYOUTS, flat
from .cases import (
    EOS,
    MASK,
    a_round,
    assert_as_the_reference,
    every_attention,
    every_backend,
    every_kind,
    run,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@every_backend
@every_kind
@every_attention
@pytest.mark.parametrize("shift", [False, True])
def test_states_of_decoding(backend, shift, attention, kind):
    for seed in range(3):
        given = a_round(rng(seed), 20, kind=kind, attention=attention, shift=shift)
        assert_as_the_reference(run(backend, given), given)


@every_backend
@every_kind
@pytest.mark.parametrize("factor", [1e-9, 0.5, 1.0, 3.0, 1e30])
def test_by_rank(backend, factor, kind):
    given = a_round(rng(), 20, block_length=9, kind=kind, factor=factor, num_lookaheads=2)
    assert_as_the_reference(run(backend, given), given)


@every_backend
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
def test_thresholds(backend, threshold):
    """0.9 is between two numbers of float32, and compared as the nearer one."""
    for kind in ("few values", "sure"):
        given = a_round(rng(), 30, kind=kind, threshold=threshold)
        assert_as_the_reference(run(backend, given), given)


@every_backend
def test_a_threshold_for_each_sequence(backend):
    threshold = torch.tensor([0, 7, 0.5, 7, 0.9, 7, 1, 7])[::2]
    for kind in ("few values", "sure"):
        given = a_round(rng(), 4, kind=kind, threshold=threshold)
        assert_as_the_reference(run(backend, given), given)


@every_backend
@pytest.mark.parametrize(("add_at", "activate_at"), [(0, 0), (0, 5), (5, 0), (1, 4), (3, 2)])
def test_the_pipeline(backend, add_at, activate_at):
    for filled in (0.0, 0.3, 0.8, 1.0):
        options = {"add_at": add_at, "activate_at": activate_at, "unknown": 0.6}
        given = a_round(rng(), 40, 6, 5, filled=filled, **options)
        assert_as_the_reference(run(backend, given), given)


@every_backend
@pytest.mark.parametrize(
    ("blocks", "block_length", "in_window", "k"),
    [
        (1, 1, 1, 0),
        (1, 1, 1, 5),
        (16, 4, 4, 16),
        (32, 64, 8, 16),
        (10, 48, 3, 4),
        (1, 300, 1, 2),
        (1, 2048, 1, 3),
        (4, 3, 1, 2),
        (3, 17, 2, 60),
    ],
)
@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_sizes(backend, blocks, block_length, in_window, k, factor):
    for kind in ("normal", "few values"):
        sizes = (4, blocks, block_length, in_window)
        given = a_round(rng(), *sizes, kind=kind, num_lookaheads=k, factor=factor)
        assert_as_the_reference(run(backend, given), given)


@every_backend
def test_a_batch_for_several_threads(backend):
    given = a_round(rng(), 150, 16, 32, 4, num_lookaheads=4)
    assert_as_the_reference(run(backend, given), given)


@every_backend
@pytest.mark.parametrize("ended", [0.0, 0.5, 1.0])
def test_ends_of_text(backend, ended):
    """In the text, in what is filled, in a lookahead's own token; and none is looked for."""
    for eos in (EOS, -1):
        given = a_round(rng(), 40, ended=ended, kind="sure", eos_token=eos)
        assert_as_the_reference(run(backend, given), given)


@every_backend
@every_attention
@pytest.mark.parametrize("prefilled", [0.5, 1.0])
def test_blocks_that_were_filled_before_they_were_added(backend, prefilled, attention):
    for block_length in (1, 4):
        options = {"prefilled": prefilled, "filled": 0.8, "add_at": 0, "attention": attention}
        given = a_round(rng(), 60, 6, block_length, ended=0, **options)
        assert_as_the_reference(run(backend, given), given)


@every_backend
def test_a_prediction_that_is_the_mask_fills_nothing(backend):
    """No model's confidence has one, but an operator takes what it is given."""
    given = a_round(rng(), 10, kind="sure")
    given.predicted.token[:, ::2] = MASK
    assert_as_the_reference(run(backend, given), given)


@every_backend
@pytest.mark.parametrize("layout", ["transposed", "sliced", "narrow"])
def test_layouts(backend, layout):
    given = a_round(rng(), 5)
    stored = [LAYOUTS[layout](x) for x in flat(given[:4])]
    got = backend.function(*map(backend.put, stored), backend=backend.name, **given.options)
    assert_as_the_reference(backend._back(got), given)


@every_backend
def test_no_sequences(backend):
    given = a_round(rng(), 0)
    got = run(backend, given)
    assert got.tokens.shape == (0, 4, 12)
    assert_as_the_reference(got, given)


@every_backend
def test_inputs_are_left_alone(backend):
    given = a_round(rng(), 5)
    before = [x.clone() for x in flat(given[:4])]
    run(backend, given)
    for now, then in zip(flat(given[:4]), before, strict=True):
        assert torch.equal(now, then)
