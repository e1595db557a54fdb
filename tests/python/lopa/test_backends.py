"""The same seed gives the same tokens, whoever computes the operators."""

from functools import partial

import pytest
import torch

from triselect import lopa
from triselect.lopa import Config, Decoder, ToyDenoiser
from triselect.ops import backends

from .cases import rounds

OPERATORS = ("spawn", "token_confidence", "commit")
missing = backends.missing_native()
BACKENDS = [
    "eager",
    pytest.param("native", marks=pytest.mark.skipif(missing is not None, reason=missing or "")),
    pytest.param("triton", marks=pytest.mark.interpret),
]
CONFIG = Config(length=12, block_length=4, num_lookaheads=2, score="neg_entropy")


def decoded(monkeypatch, backend: str, config: Config, model: ToyDenoiser) -> lopa.State:
    for name in OPERATORS:
        operator = partial(getattr(lopa, name), backend=backend)
        monkeypatch.setattr(f"triselect.lopa.decoder.{name}", operator)
    decoder = Decoder(model, config)
    return rounds(decoder, decoder.begin([torch.arange(3), torch.arange(2)], seed=4))[-1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0},
        {"factor": 1.0, "score": "margin", "attention": "block_causal"},
        {"branch_score": "information_gain"},
        {"branch_score": "lowest", "compatibility": "released"},
        {"branch_score": "log_prob", "temperature": 0.5, "top_k": 5},
        {"branch_score": "count", "confirm": 0.3},
    ],
    ids=str,
)
def test_every_backend_decodes_as_the_reference_does(backend, options, monkeypatch):
    # Sharp enough for a clear winner wherever last bits differ.
    model = ToyDenoiser(13, eos_token=0, shift=True, sharpness=0.7)
    config = Config(**(vars(CONFIG) | options))
    expected = decoded(monkeypatch, "reference", config, model)
    got = decoded(monkeypatch, backend, config, model)
    for name in ("tokens", "filled_at", "filled_by", "added", "start"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
