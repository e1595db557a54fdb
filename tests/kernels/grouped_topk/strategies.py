"""Drawn cases: hypothesis draws the structure, which shrinks well, and a seed for the data.

Without hypothesis, whatever imports this file skips itself.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from triselect.ops.grouped_topk import GROUP_SCORES, SCORING_FUNCS

from ..backends import DTYPES, SAME_VALUES

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import example, given, settings
from hypothesis import strategies as st

TINY_SET = np.array([-1, 0, -0.0, 0.5, 1, np.inf, -np.inf, np.nan], np.float32)


class Case(NamedTuple):
    logits: Tensor
    layout: str
    options: dict[str, Any]


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Logits of a spread that is drawn, too: flat ones round differently from peaked ones."""
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(rng.choice([0.1, 1, 3, 10]))


def tied(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """A few values again and again: the whole set, its finite part, one of it, or any three."""
    any_three = rng.standard_normal(3, dtype=np.float32) * 3
    values = (TINY_SET, TINY_SET[:5], rng.choice(TINY_SET, 1), any_three)[rng.integers(4)]
    return rng.choice(values, shape)


@st.composite
def cases(draw: st.DrawFn, data=random, max_tokens: int = 40) -> Case:
    """A router of any shape, its options, and the logits of a few tokens."""
    groups = draw(st.integers(1, 9), label="groups")
    size = draw(st.integers(1, 24), label="experts per group")
    kept = draw(st.integers(1, groups), label="topk_group")
    balanced = draw(st.booleans(), label="balanced")
    if balanced:
        top_k = kept * draw(st.integers(1, size), label="experts from each")
    else:
        top_k = draw(st.integers(1, min(kept * size, 40)), label="top_k")
    options: dict[str, Any] = {
        "top_k": top_k,
        "num_expert_group": groups,
        "topk_group": kept,
        "balanced": balanced,
        "scoring_func": draw(st.sampled_from(SCORING_FUNCS)),
        "group_score": draw(st.sampled_from(GROUP_SCORES)),
        "renormalize": draw(st.booleans(), label="renormalize"),
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5, 0.3, -1.0, 0.0])),
    }
    dtype = draw(st.sampled_from(DTYPES))
    tokens = draw(st.integers(0, max_tokens), label="tokens")
    with_bias, with_scale = draw(st.booleans(), label="bias"), draw(st.booleans(), label="scale")
    rng = np.random.default_rng(draw(st.integers(0, 2**16), label="seed"))

    def tensor(*shape: int) -> Tensor:
        return torch.from_numpy(data(rng, *shape)).to(dtype)

    logits = tensor(tokens, groups * size)
    if with_bias:
        options["e_score_correction_bias"] = tensor(groups * size)
    if with_scale:
        scale = rng.standard_normal(groups * size, dtype=np.float32)
        options["expert_scale"] = torch.from_numpy(scale)
    layout = draw(st.sampled_from(SAME_VALUES))
    return Case(logits, layout, options)


random_case = given(case=cases(random))
tied_case = given(case=cases(tied))

__all__ = [
    "Case",
    "cases",
    "example",
    "given",
    "random",
    "random_case",
    "settings",
    "tied",
    "tied_case",
]
