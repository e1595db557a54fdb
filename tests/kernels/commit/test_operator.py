"""The operator among PyTorch's: opcheck, one compilation for every batch, meta, direct calls."""

import numpy as np
import pytest
import torch

from triselect.ops import backends

from ..backends import assert_bits, opcheck
from ..compiling import assert_compiles_once
from .cases import a_round, call, every_backend

needs_native = pytest.mark.skipif(backends.missing_native() is not None, reason="not built")


def arguments(**options):
    """Of the operator itself, in their order."""
    given = a_round(np.random.default_rng(0), 3, **options)
    rule, ratio, threshold, worth, *rest = given.options.values()
    return (*given[:-1], worth, rule, ratio, threshold, *rest)


@every_backend
def test_opcheck(backend):
    opcheck("commit", arguments(), backend)
    opcheck("commit", arguments(rule="lowest", shift=True, released=True), backend)
    opcheck("commit", arguments(worth=torch.rand(3, 4)), backend)


@every_backend
@pytest.mark.parametrize("rule", ["mean", "lowest"])
def test_one_compilation_for_every_state(backend, compiler, rule):
    """Of any number of sequences. Settings are constants of a compiled graph."""

    def committed(*tensors):
        found = call(*tensors, rule=rule, ratio=0.3, backend=backend.name)
        return found._replace(worth=found.worth * 2)

    def inputs(sequences):
        state = a_round(np.random.default_rng(sequences), sequences)
        return tuple(map(backend.put, state[:-1]))

    assert_compiles_once(committed, inputs, compiler)


def test_both_overloads_agree():
    args = arguments()
    operator = torch.ops.triselect.commit
    assert_bits(operator.default(*args), operator.backend(*args, "auto"))


def test_meta_tensors_have_the_shapes_of_real_ones():
    args = arguments()
    meta = tuple(x.to("meta") if isinstance(x, torch.Tensor) else x for x in args)
    operator = torch.ops.triselect.commit.default
    for real, other in zip(operator(*args), operator(*meta), strict=True):
        assert (real.shape, real.dtype, real.stride()) == (
            other.shape,
            other.dtype,
            other.stride(),
        )


ARGS = arguments()
# What a direct call of the operator may not get past its memory with, by the place of an argument.
MISFITS = [
    *({place: ARGS[place][:, :-1]} for place in (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13)),
    *({place: ARGS[place][:2]} for place in range(14)),
    *({place: ARGS[place].double()} for place in range(14)),
    *({place: ARGS[place][..., None]} for place in range(14)),
    {0: ARGS[0][0]},
    {7: ARGS[7] * 0 - 1},
    {7: ARGS[7] * 0 + 17},
    {8: ARGS[8][:, :0], 9: ARGS[9][:, :0], 10: ARGS[10][:, :0]},
    {8: ARGS[8][..., :0], 9: ARGS[9][..., :0], 11: ARGS[11][..., :0], 12: ARGS[12][..., :0]},
    {10: ARGS[10] * 0 - 2},
    {10: ARGS[10] * 0 + 16},
    {10: ARGS[10] * 0 + 2**31 - 1},
    {11: ARGS[11].flatten()[1:]},
    {12: ARGS[12].flatten()},
    {14: torch.ones(3, 5)},
    {14: torch.ones(3, 4).double()},
    {15: "median"},
    {16: 0.0},
    {16: 2.0},
    {16: -1.0},
    {16: float("nan")},
]


@needs_native
@pytest.mark.parametrize("changes", MISFITS, ids=[f"{i}-{[*c]}" for i, c in enumerate(MISFITS)])
def test_the_extension_reads_nothing_that_is_not_there(changes):
    """Called without the public function, which would have said so in words."""
    args = [changes.get(place, value) for place, value in enumerate(ARGS)]
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        torch.ops.triselect.commit.default(*args)
