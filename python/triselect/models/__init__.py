"""Small models: trained here and shipped with the package, and, untrained, published ones."""

from triselect.models.byte_moe import (
    ByteMoE,
    ByteMoEConfig,
    RouterLogits,
    load_byte_moe,
    router_logits,
)
from triselect.models.pangu_moe import PANGU_PRO, PanguMoE, PanguMoEConfig

__all__ = [
    "PANGU_PRO",
    "ByteMoE",
    "ByteMoEConfig",
    "PanguMoE",
    "PanguMoEConfig",
    "RouterLogits",
    "load_byte_moe",
    "router_logits",
]
