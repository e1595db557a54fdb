"""The byte-level model trained with each routing: how it learned, and its load."""

from dataclasses import asdict, dataclass
from typing import Any

from triselect import models
from triselect.models import byte_moe
from triselect.models.training import Run, read_runs
from triselect.report import loads
from triselect.report.loads import Load
from triselect.report.routers import BALANCED, PLAIN

SHIPPED = {
    "top-k": (PLAIN, byte_moe.TOP_K_ROUTER_LOGITS),
    "moge": (BALANCED, byte_moe.ROUTER_LOGITS),
}


@dataclass(frozen=True)
class Trained:
    """What training with one routing gave: `runs`, one per seed, that of the shipped model first,
    and the load of that model, its own router logits on held-out text routed as in training."""

    load: Load
    runs: list[Run]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure() -> list[Trained]:
    """Plain routing, then balanced."""
    runs = sorted(read_runs(), key=lambda run: not run.kept)
    return [
        Trained(
            loads.of(router, models.router_logits(file).logits.float()),
            [run for run in runs if run.routing == name],
        )
        for name, (router, file) in SHIPPED.items()
    ]
