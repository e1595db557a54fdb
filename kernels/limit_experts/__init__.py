"""Routing within a budget of experts for the whole batch."""
