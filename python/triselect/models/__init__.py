"""Small models, trained here and shipped with the package, for demonstrations on real data."""

from triselect.models.byte_moe import (
    ByteMoE,
    ByteMoEConfig,
    RouterLogits,
    load_byte_moe,
    router_logits,
)

__all__ = ["ByteMoE", "ByteMoEConfig", "RouterLogits", "load_byte_moe", "router_logits"]
