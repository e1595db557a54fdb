"""Mixture-of-experts inference, built from `triselect.ops`."""

from triselect.moe import balance
from triselect.moe.fused import Shared, fused_moe
from triselect.moe.layer import MoGELayer
from triselect.moe.sandwich import (
    Absorbed,
    Deviation,
    PostNormInit,
    absorb_post_norm,
    post_norm_init,
)
from triselect.moe.savings import Savings, savings
from triselect.moe.tables import random_table

__all__ = [
    "Absorbed",
    "Deviation",
    "MoGELayer",
    "PostNormInit",
    "Savings",
    "Shared",
    "absorb_post_norm",
    "balance",
    "fused_moe",
    "post_norm_init",
    "random_table",
    "savings",
]
