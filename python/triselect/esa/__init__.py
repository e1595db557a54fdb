"""Efficient Selective Attention (arXiv 2502.14477), built from `triselect.ops`."""

from triselect.ops import (
    Attention,
    Compressed,
    compress,
    gather_attention,
    merge,
    select_tokens,
    selected_attention,
    token_scores,
    window_attention,
)

__all__ = [
    "Attention",
    "Compressed",
    "compress",
    "gather_attention",
    "merge",
    "select_tokens",
    "selected_attention",
    "token_scores",
    "window_attention",
]
