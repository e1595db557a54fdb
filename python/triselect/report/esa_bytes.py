"""The byte-level model on real text within budgets of tokens: what does it lose by them?"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from triselect import esa
from triselect.esa import Compressor, Config, Rotary
from triselect.models import ByteMoE, load_byte_moe, router_logits
from triselect.report.esa_methods import RANDOM, WINDOW, Method, compressed, exact
from triselect.report.estimate import Estimate

BUDGETS = (8, 16, 32, 64, 128, 192)  # selected tokens
CONFIG = Config(
    initial=4, local=16, proximity=1, chunk=16, scorer="exact", positions="original", top_k=192
)
DIM = 8


@dataclass(frozen=True)
class Loss:
    """Bits per byte with `top_k` selected tokens, mean of the passages; `over` is what full
    attention's is less, of the same passages."""

    method: str
    label: str
    top_k: int
    bits: Estimate
    over: Estimate

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Losses(NamedTuple):
    """Bits per byte of full attention on `passages` of `length` bytes, and within budgets."""

    full: Estimate
    rows: list[Loss]
    passages: int
    length: int

    def as_dict(self) -> dict[str, Any]:
        return {
            **self._asdict(),
            "full": asdict(self.full),
            "rows": [r.as_dict() for r in self.rows],
        }


def measure(budgets: Sequence[int], *, done: Callable[[], None] = lambda: None) -> Losses:
    """On one half of the passages that ship with the model, which it was not trained on.

    Compressors are calibrated on the other half.
    """
    model, text = load_byte_moe(), router_logits().text
    other, text = text.chunk(2)
    compressors = calibrate(model, other)
    full = _bits(model(text), text)
    rows = []
    for name, label, method in methods(compressors):
        for top_k in budgets:
            config = replace(method.config, top_k=top_k)
            bits = _bits(_read(model, replace(method, config=config), text), text)
            over = (bits - full).tolist()
            rows.append(Loss(name, label, top_k, Estimate.of(bits.tolist()), Estimate.of(over)))
            done()
    return Losses(Estimate.of(full.tolist()), rows, *text.shape)


def methods(compressors: Sequence[Compressor]) -> list[tuple[str, str, Method]]:
    at_local = replace(CONFIG, positions="rerope")
    return [
        ("window", WINDOW.label, replace(WINDOW, config=CONFIG)),
        ("random", RANDOM.label, replace(RANDOM, config=CONFIG)),
        ("exact", "ESA, exact", exact(1, CONFIG)),
        ("compressed", f"ESA, d′ = {DIM}", compressed(DIM, compressors, CONFIG)),
        ("rerope", "ESA, all far at one distance", exact(1, at_local)),
    ]


def calibrate(model: ByteMoE, text: Tensor) -> list[Compressor]:
    """From queries and keys before rotation, queries turned to where ESA puts them to score."""
    found = []
    for layer in range(model.config.layers):
        q, k = (x.transpose(1, 2) for x in model.queries_and_keys(text, layer, rotated=False))
        far = _rotary(model).rotate(q, torch.tensor([CONFIG.local]))
        found.append(esa.calibrate(far.flatten(0, 1), k.flatten(0, 1), dim=DIM))
    return found


def _rotary(model: ByteMoE) -> Rotary:
    return Rotary.of(model.config.head_dim, model.config.rope_theta)


def _read(model: ByteMoE, method: Method, text: Tensor) -> Tensor:
    assert method.make is not None
    reading = method.make(method.config, _rotary(model), model.config.layers, text.shape[1])
    chunks = text.split(method.config.chunk, 1)
    return torch.cat([model(chunk, reading) for chunk in chunks], 1)


def _bits(logits: Tensor, text: Tensor) -> Tensor:
    """``(passages,)``: bits per byte of ``text (passages, length)``."""
    nats = F.cross_entropy(logits[:, :-1].transpose(1, 2), text[:, 1:].long(), reduction="none")
    return nats.double().mean(1) / log(2)
