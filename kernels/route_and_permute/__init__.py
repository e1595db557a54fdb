"""Routing and permutation in one."""
