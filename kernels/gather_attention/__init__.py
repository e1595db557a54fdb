"""Attention over listed tokens, over a window, or both."""
