"""What the tests of commit feed it: any branches and predictions, worth the same often."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from triselect.kernels.commit import reference

from triselect.ops import Branches, Committed, Confidence, commit
from triselect.ops.commit import RULES

from ..backends import assert_bits, flat, over_backends
from ..spawn.cases import KINDS, MASK

every_rule = pytest.mark.parametrize("rule", RULES)


class Round(NamedTuple):
    """The tensors of a call in their order, and its options."""

    tokens: Tensor
    token: Tensor
    prob: Tensor
    score: Tensor
    filled_at: Tensor
    filled_by: Tensor
    step: Tensor
    start: Tensor
    branch: Tensor
    is_open: Tensor
    extra: Tensor
    new_token: Tensor
    new_prob: Tensor
    new_score: Tensor
    options: dict[str, Any]

    def but(self, **options: Any) -> "Round":
        return self._replace(options=self.options | options)

    def of(self, which: Any) -> "Round":
        """Some of the sequences."""
        options = dict(self.options)
        if options.get("worth") is not None:
            options["worth"] = options["worth"][which]
        return Round(*(x[which] for x in self[:-1]), options)


def a_round(
    rng: np.random.Generator,
    batch: int = 3,
    length: int = 16,
    window: int = 12,
    k: int = 3,
    *,
    kind: str = "normal",
    spawned: float = 0.8,
    unfilled: float = 0.5,
    **options: Any,
) -> Round:
    """Branches that may have nothing to do with each other: nothing here depends on that."""
    shape, of_branch = (batch, length), (batch, k + 1, window)
    tokens = rng.integers(0, MASK, shape)
    branch = rng.integers(0, MASK, of_branch)
    is_open = rng.random(of_branch) < unfilled
    if options.pop("nothing_open", False):
        is_open[:] = False
    start = rng.integers(0, length + 1, batch)
    extra = rng.integers(0, length, of_branch[:2])
    extra[rng.random(extra.shape) >= spawned] = -1
    extra[:, 0] = -1
    integers = [tokens, rng.integers(-1, MASK, shape), branch, extra, start]
    integers += [rng.integers(0, 9, batch), rng.integers(0, MASK, of_branch)]
    integers += [rng.integers(0, 9, shape), rng.integers(-1, k + 1, shape)]
    tokens, token, branch, extra, start, step, new_token, filled_at, filled_by = (
        torch.from_numpy(x.astype(np.int32)) for x in integers
    )
    prob, score = (torch.from_numpy(KINDS[kind](rng, shape)) for _ in range(2))
    new_prob, new_score = (torch.from_numpy(KINDS[kind](rng, of_branch)) for _ in range(2))
    return Round(
        *(tokens, token, prob, score, filled_at, filled_by, step, start),
        *(branch, torch.from_numpy(is_open), extra, new_token, new_prob, new_score),
        {
            "rule": "mean",
            "ratio": 0.5,
            "threshold": 0.9,
            "worth": None,
            "shift": False,
            "released": False,
        }
        | options,
    )


def by_reference(given: Round) -> Committed:
    options = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in given.options.items()}
    found = reference.commit(*(x.numpy() for x in given[:-1]), **options)
    found = [torch.from_numpy(x) for x in found]
    return Committed(found[0], Confidence(*found[1:4]), *found[4:])


def assert_as_the_reference(got: Committed, given: Round) -> None:
    """To the last bit, but for logarithms: those may differ in it."""
    expected = by_reference(given)
    if given.options["rule"] == "log_prob":
        torch.testing.assert_close(got.worth, expected.worth, rtol=2**-23, atol=0)
        got = got._replace(worth=expected.worth)
    assert torch.equal(got.winner, expected.winner)
    assert torch.equal(got.worth, expected.worth)
    assert_bits(got, expected._replace(worth=got.worth))


def call(*tensors: Tensor, **options: Any) -> Committed:
    (tokens, token, prob, score, filled_at, filled_by, step, start) = tensors[:8]
    branch, is_open, extra, *new = tensors[8:]
    unused = torch.empty(0)  # `commit` needs no more of them
    branches = Branches(branch, is_open, unused, extra, unused, unused, unused)
    before = (tokens, Confidence(token, prob, score), filled_at, filled_by, step, start)
    return commit(*before, branches, Confidence(*new), **options)


def run(backend: Any, given: Round) -> Committed:
    return backend(*flat(given[:-1]), **given.options)


every_backend = over_backends(call, "commit")
