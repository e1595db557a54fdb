"""How long a call of the public function takes, against what people would otherwise run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from typing import Any

import torch

from triselect.report import baselines
from triselect.report.providers import compile_composition, providers
from triselect.report.routers import Router, tokens_of
from triselect.report.timing import Timing, interleaved


@dataclass(frozen=True)
class Speed:
    """Timings of one shape by provider, and why the others have none."""

    router: str
    tokens: int
    dtype: str
    timings: dict[str, Timing]
    unavailable: dict[str, str]

    def ratio(self, rival: str) -> float | None:
        """How many times as long `rival` takes; below 1 it wins."""
        if rival not in self.timings:
            return None
        return self.timings[rival].p50 / self.timings["triselect"].p50

    def as_dict(self) -> dict[str, Any]:
        timings = {name: timing._asdict() for name, timing in self.timings.items()}
        return asdict(self) | {"timings": timings}


def sweep(
    router: Router,
    counts: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    compiler: str | None = "inductor",
    seconds: float = 1.0,
    done: Callable[[], object] = lambda: None,
) -> list[Speed]:
    """One `Speed` per number of tokens; the composition is compiled once, for any number."""
    compiled = None
    if compiler is not None:
        compose = baselines.composition(router)
        compiled = compile_composition(compose, backend=compiler, dynamic=True)
    found = []
    for count in counts:
        logits = tokens_of(router, count, dtype)
        who = providers(router, logits, compiler=compiler, compiled=compiled)
        timings = interleaved(who.calls, seconds=seconds)
        name = str(dtype).removeprefix("torch.")
        found.append(Speed(router.name, count, name, timings, who.unavailable))
        done()
    return found


def geometric_mean(values: Sequence[float]) -> float:
    return exp(sum(map(log, values)) / len(values))
