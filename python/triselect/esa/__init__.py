"""Efficient Selective Attention (arXiv 2502.14477), built from `triselect.ops`."""

from triselect.esa.assess import Assessment, assess
from triselect.esa.attend import attend
from triselect.esa.cache import Cache
from triselect.esa.calibrate import calibrate
from triselect.esa.calibrate_model import calibrate_model
from triselect.esa.compressor import Compressor
from triselect.esa.config import Config
from triselect.esa.recall import Curve
from triselect.esa.rotary import Rotary
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
    "Cache",
    "Compressed",
    "Compressor",
    "Config",
    "Curve",
    "Rotary",
    "assess",
    "attend",
    "calibrate",
    "calibrate_model",
    "compress",
    "gather_attention",
    "merge",
    "select_tokens",
    "selected_attention",
    "token_scores",
    "window_attention",
]
