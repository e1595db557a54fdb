"""Lookahead Parallel Decoding of diffusion language models (arXiv 2512.16229) over D2F."""

from triselect.lopa.config import Config
from triselect.lopa.decoder import Decoder
from triselect.lopa.denoiser import Denoiser
from triselect.lopa.generate import Generation, generate
from triselect.lopa.metrics import History, Metrics
from triselect.lopa.state import State
from triselect.lopa.toy import ToyDenoiser
from triselect.ops import (
    Branches,
    Committed,
    Confidence,
    Partial,
    commit,
    merge_confidence,
    partial_confidence,
    spawn,
    token_confidence,
)

__all__ = [
    "Branches",
    "Committed",
    "Confidence",
    "Config",
    "Decoder",
    "Denoiser",
    "Generation",
    "History",
    "Metrics",
    "Partial",
    "State",
    "ToyDenoiser",
    "commit",
    "generate",
    "merge_confidence",
    "partial_confidence",
    "spawn",
    "token_confidence",
]
