"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import re

import numpy as np
import pytest
import torch
from triselect.kernels.commit import eager

from .cases import Round, a_round, call, every_backend, run

GIVEN = a_round(np.random.default_rng(0), 2)
NAMES = Round._fields[:-1]
TENSORS = dict(zip(NAMES, GIVEN[:-1], strict=True))
LABELS = {
    "token": "predicted.token",
    "prob": "predicted.prob",
    "score": "predicted.score",
    "branch": "branches.tokens",
    "is_open": "branches.open",
    "extra": "branches.extra",
    "new_token": "new.token",
    "new_prob": "new.prob",
    "new_score": "new.score",
}


def label(name: str) -> str:
    return LABELS.get(name, name)


def shape(name: str) -> str:
    return str(tuple(TENSORS[name].shape))


BAD = {
    f"{name}-none": ({name: None}, TypeError, f"{label(name)} must be a tensor, got NoneType")
    for name in NAMES
}
BAD |= {
    f"{name}-dtype": (
        {name: x.double()},
        TypeError,
        f"{label(name)} must be {x.dtype}, got torch.float64",
    )
    for name, x in TENSORS.items()
}
BAD |= {
    f"{name}-device": (
        {name: x.to("meta")},
        ValueError,
        f"{label(name)} must be on cpu as the others, got meta",
    )
    for name, x in TENSORS.items()
    if name != "tokens"
}
BAD |= {
    f"{name}-shape": (
        {name: TENSORS[name][:1]},
        ValueError,
        f"{label(name)} must be {shape(name)}, got shape {tuple(TENSORS[name][:1].shape)}",
    )
    for name in NAMES
    if name not in ("tokens", "branch")
}
BAD |= {
    "tokens-1d": (
        {"tokens": TENSORS["tokens"][0]},
        ValueError,
        "tokens must be (batch, positions), got shape (16,)",
    ),
    "branch-2d": (
        {"branch": TENSORS["branch"][0]},
        ValueError,
        "branches.tokens must be (batch, branches, window) for 2 sequences of 16 positions, "
        "got shape (4, 12)",
    ),
    "branch-batch": (
        {"branch": TENSORS["branch"][:1]},
        ValueError,
        "branches.tokens must be (batch, branches, window) for 2 sequences of 16 positions, "
        "got shape (1, 4, 12)",
    ),
    "branch-none-of-them": (
        {"branch": TENSORS["branch"][:, :0]},
        ValueError,
        "branches.tokens must be (batch, branches, window) for 2 sequences of 16 positions",
    ),
    "branch-long": (
        {"branch": TENSORS["branch"].repeat(1, 1, 2)},
        ValueError,
        "branches.tokens must be (batch, branches, window) for 2 sequences of 16 positions, "
        "got shape (2, 4, 24)",
    ),
    "new-flat-short": (
        {"new_token": TENSORS["new_token"].flatten()[1:]},
        ValueError,
        "new.token must be (96,), got shape (95,)",
    ),
    "new-flat-and-not": (
        {"new_prob": TENSORS["new_prob"].flatten()},
        ValueError,
        "new.prob must be (2, 4, 12), got shape (96,)",
    ),
    "worth-list": ({"worth": [1.0]}, TypeError, "worth must be a tensor, got list"),
    "worth-shape": (
        {"worth": torch.ones(2, 3)},
        ValueError,
        "worth must be (2, 4), got shape (2, 3)",
    ),
    "worth-double": (
        {"worth": torch.ones(2, 4).double()},
        TypeError,
        "worth must be torch.float32, got torch.float64",
    ),
    "rule": ({"rule": "median"}, ValueError, "rule must be one of ('mean', 'lowest', 'count', "),
    "ratio-0": ({"ratio": 0.0}, ValueError, "ratio must be above 0, got 0"),
    "ratio-large": ({"ratio": 1.5}, ValueError, "ratio must be between 0 and 1, got 1.5"),
    "ratio-nan": ({"ratio": float("nan")}, ValueError, "ratio must be between 0 and 1, got nan"),
    "ratio-none": ({"ratio": None}, TypeError, "ratio must be a float, got NoneType"),
    "threshold": ({"threshold": -0.5}, ValueError, "threshold must be between 0 and 1, got -0.5"),
    "threshold-text": ({"threshold": "1"}, TypeError, "threshold must be a float, got str"),
    "shift": ({"shift": 1}, TypeError, "shift must be a bool, got int"),
    "released": ({"released": "yes"}, TypeError, "released must be a bool, got str"),
    "start-negative": (
        {"start": TENSORS["start"] * 0 - 1},
        ValueError,
        "start must be between 0 and 16 (the positions), got values from -1 to -1",
    ),
    "start-behind": (
        {"start": TENSORS["start"] * 0 + 17},
        ValueError,
        "start must be between 0 and 16 (the positions), got values from 17 to 17",
    ),
    "extra-negative": (
        {"extra": TENSORS["extra"] * 0 - 2},
        ValueError,
        "branches.extra must be between -1 and 15 (-1 for no branch), got values from -2 to -2",
    ),
    "extra-behind": (
        {"extra": TENSORS["extra"] * 0 + 16},
        ValueError,
        "branches.extra must be between -1 and 15 (-1 for no branch), got values from 16 to 16",
    ),
    "backend": (
        {"backend": "cuda"},
        ValueError,
        "backend must be one of ('auto', 'reference', 'eager', 'triton', 'native'), got 'cuda'",
    ),
}
VALUES = ["start-negative", "start-behind", "extra-negative", "extra-behind"]


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message, backend):
    tensors = TENSORS | {k: v for k, v in arguments.items() if k in TENSORS}
    options = {k: v for k, v in arguments.items() if k not in TENSORS}
    with pytest.raises(error, match=re.escape(message)):
        call(*tensors.values(), **({"backend": backend} | GIVEN.options | options))


def operands(arguments):
    rule, ratio, threshold, worth, *rest = GIVEN.options.values()
    return (*(TENSORS | arguments).values(), worth, rule, ratio, threshold, *rest)


@pytest.mark.parametrize("name", VALUES)
def test_the_operator_itself_refuses_values_too(name):
    arguments, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)):
        torch.ops.triselect.commit.default(*operands(arguments))


@pytest.mark.parametrize("name", VALUES)
def test_eager_makes_something_of_values_that_nobody_looked_at(name):
    """As on a device: the result means nothing, and nothing breaks."""
    found = eager.commit(*operands(BAD[name][0]))
    assert found[0].shape == (2, 16)


@every_backend
def test_the_ends_of_all_ranges(backend):
    """A window behind everything, and settings at their bounds."""
    given = GIVEN.but(ratio=1, threshold=0)._replace(start=TENSORS["start"] * 0 + 16)
    got = run(backend, given)
    assert torch.equal(got.tokens, given.tokens)
    assert (got.worth[:, 0] == torch.inf).all()
