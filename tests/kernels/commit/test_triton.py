"""The Triton kernel: small cases in the interpreter, and what only a GPU shows.

On a GPU the tests of every backend run it too (test_equivalence, test_properties).
"""

from unittest import mock

import numpy as np
import pytest
import torch

from ..backends import Backend, flat
from ..launches import launches, on_gpu
from ..spawn.cases import KINDS, MASK, every_kind
from .cases import a_round, assert_as_the_reference, by_reference, call, every_rule, run

interpreted = Backend(call, "triton", "cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in log:RuntimeWarning")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.interpret
@every_rule
@every_kind
@pytest.mark.parametrize("released", [False, True])
def test_rules(released, kind, rule):
    options = {"rule": rule, "shift": not released, "released": released}
    given = a_round(rng(), 4, kind=kind, **options)
    assert_as_the_reference(run(interpreted, given), given)


@pytest.mark.interpret
@pytest.mark.parametrize("ratio", [1e-300, 0.1, 0.3, 0.7, 1 - 2**-53, 1.0])
def test_shares_of_the_lowest(ratio):
    """Triton makes float32 of a float: of some numbers, another share."""
    given = a_round(rng(), 30, 40, 30, 1, kind="few values", rule="lowest", ratio=ratio)
    given.is_open[:] = torch.arange(30) < torch.arange(1, 31)[:, None, None]
    assert_as_the_reference(run(interpreted, given), given)


@pytest.mark.interpret
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
def test_thresholds(threshold):
    given = a_round(rng(), 6, kind="few values", rule="count", threshold=threshold)
    assert_as_the_reference(run(interpreted, given), given)


@pytest.mark.interpret
@every_kind
@pytest.mark.parametrize("released", [False, True])
def test_worth_that_is_given(released, kind):
    given = a_round(rng(), 8, k=5, released=released, spawned=0.5)
    given = given.but(worth=torch.from_numpy(KINDS[kind](rng(1), (8, 6))))
    assert_as_the_reference(run(interpreted, given), given)


@pytest.mark.interpret
@every_rule
@pytest.mark.parametrize(("length", "window", "k"), [(1, 1, 0), (40, 17, 5), (64, 64, 16)])
def test_sizes(length, window, k, rule):
    given = a_round(rng(), 2, length, window, k, rule=rule, shift=True)
    assert_as_the_reference(run(interpreted, given), given)


@pytest.mark.interpret
@every_rule
@pytest.mark.parametrize("released", [False, True])
def test_in_pieces(released, rule):
    """Branches are valued two at a time, and the sequence copied by four."""
    from triselect.kernels.commit import triton

    given = a_round(rng(), 4, 40, 16, 6, rule=rule, released=released, kind="all equal")
    with mock.patch.multiple(triton, TILE=32, COPIED=4):
        assert_as_the_reference(run(interpreted, given), given)
        other = a_round(rng(), 4, 40, 16, 6, rule=rule, released=released)
        assert_as_the_reference(run(interpreted, other), other)


@pytest.mark.interpret
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("start", [8, 15, 16])
def test_windows_at_the_end(start, shift):
    given = a_round(rng(), 3, shift=shift)
    given.start.fill_(start)
    assert_as_the_reference(run(interpreted, given), given)


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("start", "extra"), [(-5, 0), (-(2**31), 0), (99, 0), (3, 16), (3, 2**31 - 1), (3, -7)]
)
def test_values_that_nobody_looked_at_break_nothing(start, extra):
    """As on a device: the result means nothing, but it is made of what was given."""
    from triselect.kernels.commit import triton

    given = a_round(rng(), 2)
    given.start.fill_(start)
    given.extra[:, 1:] = extra
    rule, ratio, threshold, worth, *rest = given.options.values()
    found = triton.commit(*given[:-1], worth, rule, ratio, threshold, *rest)
    assert ((found[0] >= 0) & (found[0] <= MASK)).all()
    assert ((found[6] >= 0) & (found[6] < 4)).all()


@pytest.mark.interpret
def test_no_sequences_launch_nothing(monkeypatch):
    from triselect.kernels.commit import triton

    monkeypatch.setattr(triton, "commit_sequences", None)
    assert run(interpreted, a_round(rng(), 0)).tokens.shape == (0, 16)


try:
    from .strategies import any_round
except pytest.skip.Exception:  # hypothesis is not installed
    pass
else:
    from hypothesis import given as drawn
    from hypothesis import settings

    @pytest.mark.interpret
    @drawn(case=any_round(most=20))
    @settings(max_examples=40)
    def test_random_rounds(case):
        assert_as_the_reference(run(interpreted, case), case)


@pytest.mark.gpu
def test_launches():
    given = a_round(rng(), 4, 512, 128, 4)
    assert launches(call, *given[:-1], **given.options) == ["commit_sequences"]


@pytest.mark.gpu
def test_a_captured_graph_follows_the_state():
    options = a_round(rng()).options
    inputs = [on_gpu(x) for x in a_round(rng())[:-1]]
    call(*inputs, **options)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call(*inputs, **options)
    for seed in range(1, 4):
        state = a_round(rng(seed))
        for mine, new in zip(inputs, state[:-1], strict=True):
            mine.copy_(new)
        graph.replay()
        for mine, theirs in zip(flat(got), flat(by_reference(state)), strict=True):
            assert torch.equal(mine.cpu(), theirs)
