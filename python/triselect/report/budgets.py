"""What a budget of experts for the batch saves, and what it changes, on real router logits."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

import triselect
from triselect.models import ByteMoEConfig
from triselect.moe import savings
from triselect.report.routers import BALANCED, sample

STEPS = 32  # decoding steps per layer: one token of every sequence


@dataclass(frozen=True)
class Budget:
    """Means over batches with `kept` experts of each group: experts whose weights are read, the
    bytes of those that are not, and the shares of assignments changed and of router weight kept."""

    kept: int
    experts: float
    bytes_saved: float
    changed: float
    weight: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def batch_size() -> int:
    return sample().logits.shape[1]


def measure() -> list[Budget]:
    """Every budget from a whole group down to one expert of it."""
    config = ByteMoEConfig()
    expert_bytes = 3 * config.width * config.expert_width * 2  # gate, up and down in bfloat16
    logits = sample().logits
    steps = torch.linspace(0, logits.shape[2] - 1, STEPS).long()
    batches = list(logits[:, :, steps].transpose(1, 2).flatten(0, 1))  # (sequences, experts)
    size = BALANCED.experts // BALANCED.groups
    return [_measure(kept, batches, expert_bytes) for kept in range(size, 0, -1)]


def _measure(kept: int, batches: list[torch.Tensor], expert_bytes: int) -> Budget:
    options = BALANCED.options()
    experts = saved = changed = weight = 0.0
    for logits in batches:
        before = triselect.grouped_topk(logits, **options)
        after = triselect.limit_experts(logits, budget=kept, **options)
        found = savings(before.experts, after.experts, BALANCED.experts, expert_bytes)
        experts += int(found.experts_after)
        saved += int(found.bytes_saved)
        changed += int(found.assignments_changed) / before.experts.numel()
        weight += float(after.weights.sum() / before.weights.sum())
    return Budget(kept, *(total / len(batches) for total in (experts, saved, changed, weight)))
