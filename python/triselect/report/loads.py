"""What three routings of the same logits do to the devices that hold the experts."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from triselect.moe import balance
from triselect.report.routers import BALANCED, LIMITED, PLAIN, Router, sample

ROUTINGS = (PLAIN, LIMITED, BALANCED)
EXPERTS = 64
DEVICES = 8
BATCHES = (1, 4, 16, 64, 256, 1024)
SHOWN = 256  # tokens of the batch whose devices are shown one by one
MOST = 200  # batches per size


@dataclass(frozen=True)
class Imbalance:
    """Of `batches` batches of `tokens` tokens: mean, p10 and p90 of the imbalance score, and the
    mean straggler factor."""

    tokens: int
    batches: int
    mean: float
    p10: float
    p90: float
    straggler: float


@dataclass(frozen=True)
class Load:
    """One routing's figures; `device_load` is of one batch, as multiples of the mean."""

    routing: str
    label: str
    imbalance: list[Imbalance]
    device_load: list[float]
    straggler: float
    devices_per_token: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure() -> list[Load]:
    """Plain, group-limited and balanced routing of the sample; then plain routing of pure noise.

    Batches are of shuffled tokens of one layer, over all layers. Eight experts to a device.
    """
    logits = sample().logits
    noise = [torch.randn(layer.shape, generator=_seeded()) for layer in logits.flatten(1, 2)]
    found = [of(router, logits) for router in ROUTINGS]
    return [*found, _load(PLAIN, "plain top-8 of random numbers (simulated)", noise)]


def of(router: Router, logits: Tensor) -> Load:
    """One routing of logits ``(layers, sequences, tokens, 64)``, in batches as above."""
    return _load(router, router.label, [_shuffled(layer) for layer in logits.flatten(1, 2)])


def _load(router: Router, label: str, layers: list[Tensor]) -> Load:
    experts = [router(layer).experts for layer in layers]
    shown = balance.device_load(experts[0][:SHOWN], EXPERTS, DEVICES).double()
    every = torch.cat(experts)
    visited = torch.zeros(len(every), DEVICES).scatter(1, (every // (EXPERTS // DEVICES)).long(), 1)
    return Load(
        router.name if label == router.label else "simulated",
        label,
        [_imbalance(experts, size) for size in BATCHES],
        (shown / shown.mean()).tolist(),
        float(balance.straggler_factor(experts[0][:SHOWN], EXPERTS, DEVICES)),
        float(visited.sum(-1).mean()),
    )


def _imbalance(experts: list[Tensor], size: int) -> Imbalance:
    per_layer = max(1, MOST // len(experts))
    batches = [
        batch
        for layer in experts
        for batch in layer[: len(layer) // size * size].split(size)[:per_layer]
    ]
    scores = torch.stack([balance.imbalance_score(batch, EXPERTS, DEVICES) for batch in batches])
    p10, p90 = scores.quantile(torch.tensor([0.1, 0.9], dtype=scores.dtype)).tolist()
    factors = [balance.straggler_factor(batch, EXPERTS, DEVICES) for batch in batches]
    straggler = float(torch.stack(factors).mean())
    return Imbalance(size, len(batches), float(scores.mean()), p10, p90, straggler)


def _shuffled(layer: Tensor) -> Tensor:
    return layer[torch.randperm(len(layer), generator=_seeded())]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
