"""The toy sees what its contract says, and nothing else."""

import pytest
import torch

from triselect.lopa import Denoiser, ToyDenoiser
from triselect.models.masked_diffusion import MaskedDiffusion

MODELS = {
    "toy": lambda: ToyDenoiser(20),
    "transformer": lambda: MaskedDiffusion(20, width=16, heads=2, layers=2).double().eval(),
}
every_model = pytest.mark.parametrize("model", [m() for m in MODELS.values()], ids=MODELS)


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def ids(*shape):
    return torch.randint(0, 20, shape, generator=torch.Generator().manual_seed(1)).int()


@every_model
def test_is_a_denoiser(model):
    assert isinstance(model, Denoiser)


@every_model
def test_a_position_sees_its_level_and_below(model):
    tokens, zero = ids(1, 1, 6), torch.zeros(1, dtype=torch.int32)
    level = torch.tensor([[0, 0, 1, 1, 2, 2]])
    logits = model(tokens, zero, level, None)
    for i in range(6):
        changed = tokens.clone()
        changed[0, 0, i] = (changed[0, 0, i] + 1) % 20
        other = model(changed, zero, level, None)
        differs = (other != logits).any(-1)[0, 0]
        assert not differs[level[0] < level[0, i]].any()
        assert differs[i]


@every_model
def test_variants_do_not_see_each_other(model):
    tokens, zero = ids(2, 3, 6), torch.zeros(2, dtype=torch.int32)
    level = torch.zeros(2, 6)
    together = model(tokens, zero, level, None)
    for j in range(3):
        alone = model(tokens[:, j : j + 1], zero, level, None)
        torch.testing.assert_close(together[:, j], alone[:, 0])


@every_model
def test_a_cache_is_what_was_read(model):
    """Two sequences of different lengths, read in three pieces."""
    tokens = ids(2, 1, 12)
    lengths = torch.tensor([3, 5], dtype=torch.int32)
    level = (torch.arange(12) - lengths[:, None]).clamp_min(-1) // 3 + 1
    whole = model(tokens, torch.zeros_like(lengths), level, None)
    cache = model.new_cache(2, 11)
    last = model.prefill(tokens[:, 0, :5], lengths, cache)
    for b, n in enumerate(lengths):
        torch.testing.assert_close(last[b], whole[b, 0, n - 1])
    for begin in (0, 3):
        here = lengths[:, None] + torch.arange(begin, begin + 6)
        piece = tokens[:, 0].take_along_dim(here.clamp_max(11).long(), 1)[:, None]
        found = model(
            piece, lengths + begin, level.take_along_dim(here.clamp_max(11).long(), 1), cache
        )
        for b, n in enumerate(lengths):
            size = min(6, 11 - int(n) - begin)
            torch.testing.assert_close(
                found[b, 0, :size], whole[b, 0, n + begin : n + begin + size]
            )


def test_integers():
    toy = ToyDenoiser(20, sharpness=8.0)
    logits = toy(ids(2, 2, 9), torch.zeros(2, dtype=torch.int32), torch.zeros(2, 9), None)
    assert torch.equal(logits, logits.round())


def test_too_few_tokens():
    with pytest.raises(ValueError, match="vocab_size must be at least 3, got 2"):
        ToyDenoiser(2)
