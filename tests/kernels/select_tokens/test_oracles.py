"""Against what PyTorch and NumPy select: as a set where their sort is stable, else as scores."""

import numpy as np
import pytest
import torch

from .cases import every_backend, every_kind, scores_of


def by_sorting(scores, k):
    """The first k of a stable sort, ascending; NaN would come first there."""
    order = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf).sort(
        dim=1, descending=True, stable=True
    )
    return order.indices[:, :k].sort(dim=1).values.int()


@every_backend
@every_kind
def test_a_stable_sort(backend, kind):
    scores = scores_of(np.random.default_rng(0), 3, 1000, kind)
    for k in (1, 64, 900):
        assert torch.equal(backend(scores, k), by_sorting(scores, k))


@every_backend
@pytest.mark.parametrize("proximity", [1, 4, 30])
def test_pooling(backend, proximity):
    scores = scores_of(np.random.default_rng(0), 3, 1000)
    pooled = torch.nn.functional.max_pool1d(scores, 2 * proximity + 1, 1, proximity)
    assert torch.equal(backend(scores, 100, proximity=proximity), by_sorting(pooled, 100))


@every_backend
def test_the_scores_of_topk_and_argpartition(backend):
    """Whichever of equal ones they take, the scores are the same."""
    scores = scores_of(np.random.default_rng(0), 1, 20000, "plateaus")
    mine = scores.gather(1, backend(scores, 2048).long()).sort().values
    assert torch.equal(mine, scores.topk(2048).values.sort().values)
    order = np.argpartition(scores.numpy(), 20000 - 2048, axis=1)[:, -2048:]
    assert torch.equal(
        mine, torch.from_numpy(np.sort(np.take_along_axis(scores.numpy(), order, 1)))
    )


@every_backend
@pytest.mark.parametrize("kind", ["normal", "at the boundary"])
def test_a_million_tokens(backend, kind):
    """Twice what a buffer of candidates was ever made for, with ties by the thousand."""
    scores = scores_of(np.random.default_rng(0), 1, 2**20 + 3, kind)
    assert torch.equal(backend(scores, 4096), by_sorting(scores, 4096))
