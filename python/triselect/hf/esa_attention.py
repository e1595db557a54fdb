"""ESA behind transformers' attention interface.

The configuration names the function that computes attention. Under the name registered here that
is `esa.attend`, which takes queries and keys before rotation: `Unrotated` stands in for the model's
rotary embedding, and norms of queries and keys come before that anyway.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from triselect import esa
from triselect.hf.esa_cache import EsaCache

NAME = "triselect-esa"
MARK = "_triselect_esa"  # on attention modules and their decoder: the EsaEnabled


class Reading(NamedTuple):
    """What the layers need while a model reads tokens."""

    cache: EsaCache
    tokens: int  # new ones of each row, padding included
    padding: list[int]  # of each row
    rotary: esa.Rotary
    backend: str


def forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """``query (B, H, C, D)``, ``key, value (B, G, C, D)`` to ``(B, C, H, D)``."""
    enabled = vars(module).get(MARK)
    if enabled is None:
        raise ValueError(
            "ESA is not enabled in this model, but its configuration names it: models that share "
            "one configuration object share the choice, give each its own"
        )
    if enabled.step is None:
        raise ValueError("an attention layer with ESA works only within a call of its whole model")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        raise RuntimeError(
            "ESA has no gradient: call the model under torch.no_grad() or torch.inference_mode(), "
            "or disable_esa(model) to train it"
        )
    if dropout:
        raise ValueError(f"ESA has no dropout, got {dropout}: call model.eval()")
    if is_causal is False:
        raise ValueError("is_causal must not be False: ESA is causal attention")
    step: Reading = enabled.step
    out = esa.attend(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        step.cache.esa,
        module.layer_idx,
        rotary=step.rotary,
        scale=scaling,
        padding=step.padding,
        backend=step.backend,
    )
    return out, None


AttentionInterface.register(NAME, forward)


class Unrotated(nn.Module):
    """In place of a rotary embedding: the angle 0 at every position."""

    def __init__(self, rotary: nn.Module, config: Any) -> None:
        super().__init__()
        self.rotary, self.config = rotary, config  # the model's own still moves with the model
        self.size = 2 * len(rotary.inv_freq)  # type: ignore[arg-type]

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        if self.config._attn_implementation != NAME:
            raise ValueError(
                f"attention was set to {self.config._attn_implementation!r} while ESA is enabled, "
                "which leaves it without positions: disable_esa(model) first"
            )
        return x.new_ones(1, 1, self.size), x.new_zeros(1, 1, self.size)
