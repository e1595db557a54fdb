"""Is every backend equal to the reference, on the real router logits?"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from triselect.kernels.grouped_topk import reference
from triselect.report.routers import DEEPSEEK_V3, LIMITED, PANGU, PLAIN, Router, tokens_of

ROUTERS = (PANGU, DEEPSEEK_V3, LIMITED, PLAIN)
INTERPRETED = (PANGU, DEEPSEEK_V3)
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Verdict:
    """How one backend compares with the float64 reference."""

    backend: str
    router: str
    dtype: str
    tokens: int
    identical: int
    worst_error: float
    mean_error: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(
    backend: str, router: Router, dtype: torch.dtype, tokens: int, device: str = "cpu"
) -> Verdict:
    """Routes `tokens` real tokens. Errors of the weights are relative to the reference's."""
    logits = tokens_of(router, tokens, dtype)
    routing = router(logits.to(device), backend=backend)
    options = {
        name: value.numpy() if isinstance(value, torch.Tensor) else value
        for name, value in router.options().items()
    }
    weights, experts = reference.grouped_topk(
        logits.float().numpy(),
        router.top_k,
        router.groups,
        router.kept,
        router.balanced,
        router.scoring_func,
        router.group_score,
        options.get("e_score_correction_bias"),
        router.renormalize,
        router.factor,
        options.get("expert_scale"),
    )
    same = (routing.experts.cpu().numpy() == experts).all(-1)
    error = np.abs(routing.weights.cpu().numpy()[same] / weights[same] - 1)
    return Verdict(
        backend,
        router.name,
        str(dtype).removeprefix("torch."),
        len(same),
        int(same.sum()),
        float(error.max(initial=0)),
        float(error.mean()) if error.size else 0.0,
    )
