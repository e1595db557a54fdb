"""Stable permutation of tokens by expert, by counting."""
