"""Drawn calls: hypothesis draws their structure, and a seed for the data."""

from typing import Any

import numpy as np
import pytest
import torch

from triselect.ops.grouped_topk import SCORING_FUNCS

from ..backends import DTYPES, INDEX_DTYPES, SAME_VALUES
from ..grouped_topk.strategies import random, tied
from .cases import Call, random_call

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st


@st.composite
def calls(draw: st.DrawFn, max_tokens: int = 60) -> Call:
    """By table or by hash, with or without domains and logits."""
    size = draw(st.integers(1, 40) | st.sampled_from([64, 100, 1000]), label="experts of a group")
    k = draw(st.integers(0, min(size, 8)), label="columns")
    seed = draw(st.integers(0, 2**16), label="seed of the data")
    call = random_call(
        tokens=draw(st.integers(0, max_tokens), label="tokens"),
        vocabulary=draw(st.none() | st.integers(0, 50), label="vocabulary"),
        k=k,
        groups=draw(st.integers(1, 6), label="groups"),
        size=size,
        padding=draw(st.sampled_from([0.0, 0.1, 1.0]), label="padding"),
        dtype=draw(st.sampled_from(INDEX_DTYPES)),
        seed=seed,
        scoring_func=draw(st.sampled_from(SCORING_FUNCS)),
        renormalize=draw(st.booleans(), label="renormalize"),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5, 0.3, -1.0, 0.0])),
    )
    changes: dict[str, Any] = {}
    changes["seed"] = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1))
    # Dtypes need not be the same.
    for name in ("table", "domains"):
        if (tensor := getattr(call, name)) is not None:
            changes[name] = tensor.to(draw(st.sampled_from(INDEX_DTYPES)))
    if data := draw(st.sampled_from([None, random, tied])):
        x = data(np.random.default_rng(seed), len(call.token_ids), call.num_experts)
        changes["logits"] = torch.from_numpy(x).to(draw(st.sampled_from(DTYPES)))
    return call._replace(**changes)


random_call_and_layout = given(call=calls(), layout=st.sampled_from(SAME_VALUES))

__all__ = ["calls", "given", "random_call_and_layout", "st"]
