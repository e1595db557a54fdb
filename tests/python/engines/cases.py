"""Settings, toy models and prompts, drawn from a seed, that both hooks are tested on."""

from typing import Any

import torch
from torch import Tensor

from triselect.lopa import ToyDenoiser


def drawn(seed: int) -> tuple[int, int, dict[str, Any]]:
    """Block length, lookaheads, options."""
    generator = torch.Generator().manual_seed(seed)

    def one_of(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    return (
        one_of(1, 2, 4, 5, 8),
        one_of(0, 1, 2, 3, 9),
        {
            "threshold": one_of(0.3, 0.6, 0.9, 1.0),
            "factor": one_of(None, None, 0.7),
            "score": one_of("max_prob", "margin", "neg_entropy"),
            "branch_score": one_of("mean", "mean", "lowest", "count", "common_mean"),
            "lowest": one_of(0.3, 1.0),
            "confirm": one_of(None, None, 0.0, 0.5, 0.8),
        },
    )


def toy(seed: int) -> ToyDenoiser:
    return ToyDenoiser(vocab_size=5 + seed % 9, seed=seed, sharpness=(0.3, 1.0, 2.0)[seed % 3])


def some_prompts(seed: int, count: int, length: int, vocabulary: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(vocabulary - 1, (count, length), generator=generator)
