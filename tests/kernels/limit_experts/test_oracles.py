"""The MERRouter that Pangu Pro MoE was served with, written out."""

import pytest
import torch

from .cases import every_backend


def most_efficient_experts(scores, groups, voted):
    """One expert per token and group, of the `voted` most chosen in the group by the batch."""
    tokens, experts = scores.shape
    size = experts // groups
    by_group = scores.view(tokens, groups, size)
    first = by_group.argmax(-1)  # (T, G)
    votes = torch.stack([first[:, group].bincount(minlength=size) for group in range(groups)])
    order = votes.argsort(-1, descending=True)
    mask = torch.zeros_like(votes).scatter_(1, order[:, :voted], 1)
    weights, chosen = (by_group * mask).max(-1)
    ranked = votes.gather(1, order)
    clear = voted == size or (ranked[:, voted - 1] > ranked[:, voted]).all()
    return weights, chosen + size * torch.arange(groups), mask.flatten().bool(), clear


@every_backend
@pytest.mark.parametrize("voted", [1, 3, 5, 7, 8])
def test_merrouter(backend, voted):
    """On a batch whose votes leave no doubt: a skew apart for every expert."""
    generator = torch.Generator().manual_seed(voted)
    skew = torch.linspace(0, 2, 8)[torch.rand(8, 8, generator=generator).argsort(-1)].flatten()
    logits = torch.randn(2000, 64, generator=generator) + skew
    theirs, experts, kept, clear = most_efficient_experts(logits.softmax(-1), 8, voted)
    assert clear
    got = backend(logits, top_k=8, budget=voted, num_expert_group=8, balanced=True)
    assert torch.equal(got.kept, kept)
    assert torch.equal(got.experts.long(), experts)
    torch.testing.assert_close(got.weights, theirs, rtol=1e-6, atol=0)
