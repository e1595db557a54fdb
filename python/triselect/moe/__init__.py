"""Mixture-of-experts inference, built from `triselect.ops`."""

from triselect.moe import balance

__all__ = ["balance"]
