"""The operator among PyTorch's: opcheck, one compilation for all thresholds, meta, direct calls."""

import numpy as np
import pytest
import torch

from triselect.ops import Confidence, backends, spawn

from ..backends import assert_bits, flat, opcheck
from ..compiling import assert_compiles_once
from .cases import EOS, MASK, a_round, every_backend

needs_native = pytest.mark.skipif(backends.missing_native() is not None, reason="not built")


def arguments(**options):
    """Of the operator itself, in their order."""
    given = a_round(np.random.default_rng(0), 3, **options)
    return (*flat(given[:4]), None, *given.options.values())


@every_backend
def test_opcheck(backend):
    opcheck("spawn", arguments(), backend)
    opcheck("spawn", arguments(factor=1.0, attention="bidirectional", shift=True), backend)


@every_backend
def test_one_compilation_for_every_state(backend, compiler):
    """Of any number of sequences, and any thresholds. Other settings are constants of the graph."""
    options = a_round(np.random.default_rng(0)).options

    def branches(tokens, token, prob, score, added, start, threshold):
        predicted = Confidence(token, prob, score)
        given = options | {"threshold": threshold}
        found = spawn(tokens, predicted, added, start, backend=backend.name, **given)
        return found._replace(level=found.level + 1)

    def inputs(sequences):
        rng = np.random.default_rng(sequences)
        state = a_round(rng, sequences)
        threshold = torch.from_numpy(rng.random(sequences, np.float32))
        return tuple(map(backend.put, (*flat(state[:4]), threshold)))

    assert_compiles_once(branches, inputs, compiler)


def test_both_overloads_agree():
    args = arguments()
    operator = torch.ops.triselect.spawn
    assert_bits(operator.default(*args), operator.backend(*args, "auto"))


def test_meta_tensors_have_the_shapes_of_real_ones():
    args = arguments()
    meta = tuple(x.to("meta") if isinstance(x, torch.Tensor) else x for x in args)
    operator = torch.ops.triselect.spawn.default
    for real, other in zip(operator(*args), operator(*meta), strict=True):
        assert (real.shape, real.dtype, real.stride()) == (
            other.shape,
            other.dtype,
            other.stride(),
        )


ARGS = arguments()
# What a direct call of the operator may not get past its memory with, by the place of an argument.
MISFITS = [
    {0: ARGS[0][0]},
    {0: ARGS[0].long()},
    {0: ARGS[0][:, :0], 1: ARGS[1][:, :0], 2: ARGS[2][:, :0], 3: ARGS[3][:, :0]},
    {1: ARGS[1][:2]},
    {1: ARGS[1].float()},
    {2: ARGS[2][:, 1:]},
    {2: ARGS[2].double()},
    {3: ARGS[3].half()},
    {3: ARGS[3].T},
    {4: ARGS[4][:2]},
    {4: ARGS[4].long()},
    {4: ARGS[4] - 9},
    {4: ARGS[4] + 9},
    {4: ARGS[4] * 0 + 4, 5: ARGS[5] * 0},  # in the sequence, but not in the window
    {5: ARGS[5][:, None]},
    {5: ARGS[5] - 64},
    {5: ARGS[5] + 64},
    {5: ARGS[5] * 0 + 1},
    {6: torch.ones(2)},
    {6: torch.ones(3).double()},
    {7: 0},
    {7: -4},
    {7: 5},
    {8: 0},
    {8: 2},
    {8: 20},
    {8: -12},
    {8: 2**62},
    {9: -1},
    {9: 2**31},
    {9: 2**63 - 1},
    {10: -1},
    {10: 2**40},
    {11: 2**40},
    {16: "sideways"},
]


@needs_native
@pytest.mark.parametrize("changes", MISFITS, ids=[f"{i}-{[*c]}" for i, c in enumerate(MISFITS)])
def test_the_extension_reads_nothing_that_is_not_there(changes):
    """Called without the public function, which would have said so in words."""
    args = [changes.get(place, value) for place, value in enumerate(ARGS)]
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        torch.ops.triselect.spawn.default(*args)


@needs_native
@pytest.mark.parametrize(
    "changes", [{14: -(2**40), 15: 2**62}, {12: float("nan")}, {13: -1.0}, {10: EOS, 11: MASK}]
)
def test_the_extension_survives_settings_that_make_no_sense(changes):
    args = [changes.get(place, value) for place, value in enumerate(ARGS)]
    assert torch.ops.triselect.spawn.default(*args)[0].shape == (3, 4, 12)
