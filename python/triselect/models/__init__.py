"""Small models: trained here and shipped with the package, and, untrained, published ones."""

from triselect.models.byte_moe import (
    ByteMoE,
    ByteMoEConfig,
    RouterLogits,
    load_byte_moe,
    router_logits,
)
from triselect.models.masked_diffusion import MaskedDiffusion, load_masked_diffusion
from triselect.models.pangu_moe import PANGU_PRO, PanguMoE, PanguMoEConfig
from triselect.models.recall import RecallConfig, RecallModel, load_recall
from triselect.models.recall_task import Episodes, episodes

__all__ = [
    "PANGU_PRO",
    "ByteMoE",
    "ByteMoEConfig",
    "Episodes",
    "MaskedDiffusion",
    "PanguMoE",
    "PanguMoEConfig",
    "RecallConfig",
    "RecallModel",
    "RouterLogits",
    "episodes",
    "load_byte_moe",
    "load_masked_diffusion",
    "load_recall",
    "router_logits",
]
