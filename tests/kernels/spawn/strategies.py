"""Drawn rounds: hypothesis draws the structure, and a seed for the state of decoding."""

import numpy as np
import pytest
import torch

from .cases import ATTENTIONS, EOS, KINDS, Round, a_round

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st


@st.composite
def any_round(draw: st.DrawFn, most: int = 9) -> Round:
    """Of up to 4 sequences, 6 blocks of `most` positions and `most` lookaheads."""
    block_length = draw(st.integers(1, most), label="block_length")
    batch = draw(st.integers(0, 4), label="batch")
    thresholds = st.sampled_from((0.0, 0.5, 0.9, 1.0))
    each = st.lists(thresholds, min_size=batch, max_size=batch).map(torch.tensor)
    return a_round(
        np.random.default_rng(draw(st.integers(0, 2**16), label="seed")),
        batch=batch,
        blocks=draw(st.integers(1, 6)),
        block_length=block_length,
        in_window=draw(st.integers(1, 6)),
        kind=draw(st.sampled_from(list(KINDS))),
        filled=draw(st.sampled_from((0.0, 0.4, 0.9))),
        prefilled=draw(st.sampled_from((0.0, 0.5, 1.0))),
        ended=draw(st.sampled_from((0.0, 0.1, 0.3))),
        num_lookaheads=draw(st.integers(0, most)),
        eos_token=draw(st.sampled_from((-1, EOS))),
        threshold=draw(thresholds | each),
        factor=draw(st.just(0.0) | st.sampled_from((0.5, 1.0, 2.0, 9.0))),
        add_at=draw(st.integers(0, block_length)),
        activate_at=draw(st.integers(0, block_length)),
        attention=draw(st.sampled_from(ATTENTIONS)),
        shift=draw(st.booleans()),
    )


random_round = given(case=any_round())

__all__ = ["any_round", "random_round"]
