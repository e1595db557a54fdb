"""Decoding a transformer in float32: decisions agree where rounding is far from changing them."""

from dataclasses import replace

import pytest
import torch

from triselect.lopa import Config, Decoder
from triselect.models.masked_diffusion import MaskedDiffusion

from .cases import rounds

CONFIG = Config(length=24, block_length=8, num_lookaheads=2, threshold=0.5)
MARGIN = 1e-4  # of probabilities; they differ by rounding, some 1e-6


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def model_of(seed: int, **options: object) -> MaskedDiffusion:
    torch.manual_seed(seed)
    model = MaskedDiffusion(24, width=32, heads=2, layers=2, **options).eval()
    model.head.weight *= 4  # surer than a random model is
    return model


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_with_and_without_a_cache(seed, shift):
    model = model_of(seed, shift=shift)
    given = [torch.randint(0, 23, (n,)) for n in (3, 6)]
    runs = []
    for cache in (True, False):
        decoder = Decoder(model, replace(CONFIG, cache=cache))
        runs.append(rounds(decoder, decoder.begin(given)))
    for a, b in zip(*runs, strict=True):
        for x, y in zip(a.predicted[1:], b.predicted[1:], strict=True):
            torch.testing.assert_close(x, y, rtol=MARGIN, atol=MARGIN)
        assert torch.equal(a.tokens, b.tokens)


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_is_its_sequences(seed):
    model = model_of(seed)
    given = [torch.randint(0, 23, (n,)) for n in (3, 6, 1)]
    decoder = Decoder(model, CONFIG)
    together = rounds(decoder, decoder.begin(given))[-1]
    for b, prompt in enumerate(given):
        alone = rounds(decoder, decoder.begin([prompt]))[-1]
        assert torch.equal(alone.tokens[0], together.tokens[b])
