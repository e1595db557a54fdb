"""Grouped top-k MoE routing: score the experts, keep groups, select, weigh."""
