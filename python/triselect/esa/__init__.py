"""Efficient Selective Attention (arXiv 2502.14477), built from `triselect.ops`."""

from triselect.esa.assess import Assessment, assess
from triselect.esa.calibrate import calibrate
from triselect.esa.compressor import Compressor
from triselect.esa.recall import Curve
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
    "Assessment",
    "Attention",
    "Compressed",
    "Compressor",
    "Curve",
    "assess",
    "calibrate",
    "compress",
    "gather_attention",
    "merge",
    "select_tokens",
    "selected_attention",
    "token_scores",
    "window_attention",
]
