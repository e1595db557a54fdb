"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import re

import numpy as np
import pytest
import torch
from triselect.kernels.spawn import eager

from ..backends import flat
from .cases import a_round, call, every_backend, run

GIVEN = a_round(np.random.default_rng(0), 2)
NAMES = ("tokens", "token", "prob", "score", "added", "start")
TENSORS = dict(zip(NAMES, flat(GIVEN[:4]), strict=True))
ZEROS = torch.zeros(2, dtype=torch.int32)

BAD = {
    "list": ({"tokens": [[1]]}, TypeError, "tokens must be a tensor, got list"),
    "1d": ({"tokens": ZEROS}, ValueError, "tokens must be (batch, positions), got shape (2,)"),
    "int64": (
        {"tokens": TENSORS["tokens"].long()},
        TypeError,
        "tokens must be torch.int32, got torch.int64",
    ),
    "no positions": (
        {name: TENSORS[name][:, :0] for name in NAMES[:4]},
        ValueError,
        "tokens must have a position or more, got shape (2, 0)",
    ),
    "token-none": ({"token": None}, TypeError, "predicted.token must be a tensor, got NoneType"),
    "token-short": (
        {"token": TENSORS["token"][:1]},
        ValueError,
        "predicted.token must be (2, 16), got shape (1, 16)",
    ),
    "token-float": (
        {"token": TENSORS["prob"]},
        TypeError,
        "predicted.token must be torch.int32, got torch.float32",
    ),
    "prob-half": (
        {"prob": TENSORS["prob"].half()},
        TypeError,
        "predicted.prob must be torch.float32, got torch.float16",
    ),
    "score-shape": (
        {"score": TENSORS["score"].T},
        ValueError,
        "predicted.score must be (2, 16), got shape (16, 2)",
    ),
    "score-device": (
        {"score": TENSORS["score"].to("meta")},
        ValueError,
        "predicted.score must be on cpu as the others, got meta",
    ),
    "added-2d": ({"added": ZEROS[None]}, ValueError, "added must be (2,), got shape (1, 2)"),
    "added-int64": (
        {"added": ZEROS.long()},
        TypeError,
        "added must be torch.int32, got torch.int64",
    ),
    "start-long": (
        {"start": torch.zeros(3, dtype=torch.int32)},
        ValueError,
        "start must be (2,), got shape (3,)",
    ),
    "added-negative": (
        {"added": ZEROS - 1},
        ValueError,
        "added must be between 0 and 4 (the blocks), got values from -1 to -1",
    ),
    "added-behind": (
        {"added": ZEROS + 5, "start": ZEROS + 16},
        ValueError,
        "added must be between 0 and 4 (the blocks), got values from 5 to 5",
    ),
    "added-behind-window": (
        {"added": ZEROS + 4, "start": ZEROS},
        ValueError,
        "added must end in the window, got 4 blocks of 4 and a window from 0 to 12",
    ),
    "start-negative": (
        {"added": ZEROS, "start": ZEROS - 4},
        ValueError,
        "start must be between 0 and 16 (the positions), got values from -4 to -4",
    ),
    "start-behind": (
        {"start": ZEROS + 20},
        ValueError,
        "start must be between 0 and 16 (the positions), got values from 20 to 20",
    ),
    "start-inside-a-block": (
        {"added": ZEROS, "start": ZEROS + 6},
        ValueError,
        "start must be a multiple of block_length, 4, got 6",
    ),
    "block_length-0": (
        {"block_length": 0},
        ValueError,
        "block_length must be between 1 and 16, got 0",
    ),
    "block_length-float": (
        {"block_length": 4.0},
        TypeError,
        "block_length must be an int, got float",
    ),
    "window-short": ({"window": 2}, ValueError, "window must be between 4 and 16, got 2"),
    "window-long": ({"window": 20}, ValueError, "window must be between 4 and 16, got 20"),
    "window-part": (
        {"window": 6},
        ValueError,
        "window must be a multiple of block_length, 4 positions, got 6",
    ),
    "tokens-part": (
        {"block_length": 5, "window": 10},
        ValueError,
        "tokens must be a multiple of block_length, 5 positions, got 16",
    ),
    "lookaheads-negative": (
        {"num_lookaheads": -1},
        ValueError,
        "num_lookaheads must be between 0 and 2147483646, got -1",
    ),
    "lookaheads-bool": (
        {"num_lookaheads": True},
        TypeError,
        "num_lookaheads must be an int, got bool",
    ),
    "mask-negative": (
        {"mask_token": -1},
        ValueError,
        "mask_token must be between 0 and 2147483647, got -1",
    ),
    "mask-none": ({"mask_token": None}, TypeError, "mask_token must be an int, got NoneType"),
    "eos-negative": (
        {"eos_token": -2},
        ValueError,
        "eos_token must be between -1 and 2147483647, got -2",
    ),
    "eos-mask": (
        {"eos_token": 12},
        ValueError,
        "eos_token and mask_token must differ, both are 12",
    ),
    "threshold-large": ({"threshold": 1.5}, ValueError, "threshold must be between 0 and 1, got"),
    "threshold-negative": (
        {"threshold": -0.1},
        ValueError,
        "threshold must be between 0 and 1, got -0.1",
    ),
    "threshold-nan": (
        {"threshold": float("nan")},
        ValueError,
        "threshold must be between 0 and 1, got nan",
    ),
    "thresholds": (
        {"threshold": torch.full((GIVEN.tokens.shape[0],), 1.5)},
        ValueError,
        "threshold must be between 0 and 1, got ",
    ),
    "thresholds-nan": (
        {"threshold": torch.full((GIVEN.tokens.shape[0],), float("nan"))},
        ValueError,
        "threshold must be between 0 and 1, got ",
    ),
    "thresholds-double": (
        {"threshold": torch.full((GIVEN.tokens.shape[0],), 0.5).double()},
        TypeError,
        "threshold must be torch.float32, got torch.float64",
    ),
    "thresholds-one": (
        {"threshold": torch.tensor(0.5)},
        ValueError,
        "got shape ()",
    ),
    "threshold-none": ({"threshold": None}, TypeError, "threshold must be a float, got NoneType"),
    "threshold-bool": ({"threshold": True}, TypeError, "threshold must be a float, got bool"),
    "factor-negative": ({"factor": -1.0}, ValueError, "factor must be between 0 and 3.4"),
    "factor-infinite": ({"factor": float("inf")}, ValueError, "factor must be between 0 and 3.4"),
    "add_at-negative": ({"add_at": -1}, ValueError, "add_at must be between 0 and 4, got -1"),
    "add_at-large": ({"add_at": 5}, ValueError, "add_at must be between 0 and 4, got 5"),
    "activate_at-large": (
        {"activate_at": 5},
        ValueError,
        "activate_at must be between 0 and 4, got 5",
    ),
    "activate_at-float": (
        {"activate_at": 0.95},
        TypeError,
        "activate_at must be an int, got float",
    ),
    "attention": (
        {"attention": "causal"},
        ValueError,
        "attention must be one of ('full', 'block_causal', 'bidirectional'), got 'causal'",
    ),
    "shift": ({"shift": 1}, TypeError, "shift must be a bool, got int"),
    "backend": (
        {"backend": "cuda"},
        ValueError,
        "backend must be one of ('auto', 'reference', 'eager', 'triton', 'native'), got 'cuda'",
    ),
}
VALUES = [name for name in BAD if name.startswith(("added-", "start-")) and "got " in BAD[name][2]]
VALUES = [name for name in VALUES if "shape" not in BAD[name][2] and "torch" not in BAD[name][2]]


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message, backend):
    tensors = TENSORS | {k: v for k, v in arguments.items() if k in TENSORS}
    options = {k: v for k, v in arguments.items() if k not in TENSORS}
    with pytest.raises(error, match=re.escape(message)):
        call(*tensors.values(), **({"backend": backend} | GIVEN.options | options))


@pytest.mark.parametrize("name", VALUES)
def test_the_operator_itself_refuses_values_too(name):
    arguments, error, message = BAD[name]
    tensors = (TENSORS | arguments).values()
    with pytest.raises(error, match=re.escape(message)):
        torch.ops.triselect.spawn.default(*tensors, None, *GIVEN.options.values())


@pytest.mark.parametrize("name", VALUES)
def test_eager_makes_something_of_values_that_nobody_looked_at(name):
    """As on a device: the result means nothing, and nothing breaks."""
    arguments, _, _ = BAD[name]
    tensors = (TENSORS | arguments).values()
    found = eager.spawn(*tensors, None, *GIVEN.options.values())
    assert found[0].shape == (2, 4, 12)


@every_backend
def test_the_ends_of_all_ranges(backend):
    """A window behind everything, and settings at their bounds."""
    options = {"add_at": 4, "activate_at": 0, "threshold": 1, "factor": 0, "num_lookaheads": 0}
    given = GIVEN.but(**options)._replace(start=ZEROS + 16, added=ZEROS + 4)
    got = run(backend, given)
    assert not got.open.any()
    assert got.start.tolist() == [16, 16]
