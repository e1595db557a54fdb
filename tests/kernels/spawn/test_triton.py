"""The Triton kernel: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run it too (test_equivalence, test_properties).
"""

from unittest import mock

import numpy as np
import pytest
import torch

from ..backends import Backend, flat
from ..launches import launches, on_gpu
from .cases import (
    MASK,
    a_round,
    assert_as_the_reference,
    by_reference,
    call,
    every_attention,
    every_kind,
    run,
)

interpreted = Backend(call, "triton", "cpu")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def assert_same(*sizes, seed=0, **options):
    given = a_round(rng(seed), *sizes, **options)
    assert_as_the_reference(run(interpreted, given), given)


@pytest.mark.interpret
@every_kind
@every_attention
def test_states_of_decoding(attention, kind):
    assert_same(5, kind=kind, attention=attention, shift=True)


@pytest.mark.interpret
@every_kind
@pytest.mark.parametrize("factor", [0.5, 1.0, 1e30])
def test_by_rank(factor, kind):
    assert_same(3, 3, 9, 2, kind=kind, factor=factor)


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("blocks", "block_length", "in_window", "k"),
    [(1, 1, 1, 0), (1, 1, 1, 3), (9, 4, 4, 7), (5, 3, 3, 2), (1, 130, 1, 2), (3, 17, 2, 20)],
)
@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_sizes(blocks, block_length, in_window, k, factor):
    for kind in ("normal", "few values"):
        sizes = (2, blocks, block_length, in_window)
        assert_same(*sizes, kind=kind, num_lookaheads=k, factor=factor)


@pytest.mark.interpret
@pytest.mark.parametrize("ended", [0.0, 0.5, 1.0])
def test_ends_of_text(ended):
    for eos in (11, -1):
        assert_same(8, ended=ended, kind="sure", eos_token=eos)


@pytest.mark.interpret
def test_the_end_of_text_is_looked_for_in_pieces():
    from triselect.kernels.spawn import triton

    with mock.patch.object(triton, "READ", 4):
        assert_same(8, ended=0.7)


@pytest.mark.interpret
@pytest.mark.parametrize(("add_at", "activate_at"), [(0, 0), (0, 5), (5, 0), (3, 2)])
def test_the_pipeline(add_at, activate_at):
    for filled in (0.0, 0.5, 1.0):
        options = {"add_at": add_at, "activate_at": activate_at, "unknown": 0.6}
        assert_same(8, 6, 5, filled=filled, **options)


@pytest.mark.interpret
def test_a_prediction_that_is_the_mask_fills_nothing():
    given = a_round(rng(), 5, kind="sure")
    given.predicted.token[:, ::2] = MASK
    assert_as_the_reference(run(interpreted, given), given)


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("added", "start"), [(-1, 0), (99, 0), (2**31 - 1, 4), (1, -4), (4, 99), (2, 6), (4, 0)]
)
def test_values_that_nobody_looked_at_break_nothing(added, start):
    """As on a device. The interpreter's memory is guarded by what lies around it."""
    from triselect.kernels.spawn import triton

    given = a_round(rng(), 2)
    given.added.fill_(added)
    given.start.fill_(start)
    found = triton.spawn(*flat(given[:4]), None, *given.options.values())
    written = found[0]
    assert ((written >= -1) & (written <= MASK)).all()  # tokens, and none from elsewhere


@pytest.mark.interpret
def test_no_sequences_launch_nothing(monkeypatch):
    from triselect.kernels.spawn import triton

    monkeypatch.setattr(triton, "spawn_sequences", None)
    assert run(interpreted, a_round(rng(), 0)).tokens.shape == (0, 4, 12)


try:
    from .strategies import any_round
except pytest.skip.Exception:  # hypothesis is not installed
    pass
else:
    from hypothesis import given, settings

    @pytest.mark.interpret
    @given(case=any_round(most=5))
    @settings(max_examples=25)
    def test_random_rounds(case):
        assert_as_the_reference(run(interpreted, case), case)


@pytest.mark.gpu
def test_launches():
    given = a_round(rng(), 4, 16, 32, 4, num_lookaheads=4)
    assert launches(call, *flat(given[:4]), **given.options) == ["spawn_sequences"]


@pytest.mark.gpu
def test_a_captured_graph_follows_the_state():
    options = a_round(rng()).options
    inputs = [on_gpu(x) for x in flat(a_round(rng())[:4])]
    call(*inputs, **options)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call(*inputs, **options)
    for seed in range(1, 4):
        state = a_round(rng(seed))
        for mine, new in zip(inputs, flat(state[:4]), strict=True):
            mine.copy_(new)
        graph.replay()
        for mine, theirs in zip(got, by_reference(state), strict=True):
            assert torch.equal(mine.cpu(), theirs)
