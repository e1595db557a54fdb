"""Mixture-of-experts inference, built from `triselect.ops`."""

from triselect.moe import balance
from triselect.moe.savings import Savings, savings
from triselect.moe.tables import random_table

__all__ = ["Savings", "balance", "random_table", "savings"]
