"""Top-k and top-p against a row by hand and against transformers' definitions."""

import torch

from triselect.lopa.sampling import keep_likely


def kept(*args):
    return keep_likely(*args).isfinite().tolist()


def test_by_hand():
    p = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    logits = p.log()
    assert kept(logits, -1, 1.0, 2, None) == [[False, True, True, False]]
    assert kept(logits, -1, 1.0, None, 0.65) == [[False, True, True, False]]
    assert kept(logits, -1, 1.0, None, 0.71) == [[False, True, True, True]]
    assert kept(logits, -1, 1.0, None, 0.01) == [[False, True, False, False]]
    assert kept(logits, -1, 1.0, 10, 1.0) == [[True] * 4]
    assert kept(logits, 1, 1.0, 1, None) == [[False, False, True, False]]  # the mask token is out
    assert kept(logits, -1, 0.1, None, 0.9) == [[False, True, False, False]]  # cold: 0.4 is most


def test_ties_keep_the_lower():
    logits = torch.zeros(1, 5)
    assert kept(logits, -1, 1.0, 2, None) == [[True, True, False, False, False]]


def test_values_stay():
    logits = torch.randn(3, 4, 50, generator=torch.Generator().manual_seed(0))
    found = keep_likely(logits, -1, 0.7, 10, 0.8)
    keep = found.isfinite()
    assert torch.equal(found[keep], logits[keep])
    assert (keep.sum(-1) <= 10).all()
