"""What grouped_topk refuses is refused alike, and an unknown option by its name."""

import re

import pytest
import torch

import triselect

from ..grouped_topk.test_errors import BAD, LOGITS


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message, backend):
    arguments = {"logits": LOGITS, "top_k": 2, "backend": backend} | arguments
    with pytest.raises(error, match=re.escape(message)):
        triselect.route_and_permute(**arguments)


def test_the_options_are_those_of_grouped_topk():
    assert triselect.route_and_permute.__kwdefaults__ == triselect.grouped_topk.__kwdefaults__


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'renorm'"):
        triselect.route_and_permute(LOGITS, 2, renorm=True)


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        triselect.route_and_permute(LOGITS, 2, 4)


def test_more_rows_than_32_bits_count():
    tokens = torch.empty(2**28, 12, device="meta")
    message = "logits must have fewer tokens: 268435456 with top_k = 8 are more than 2**31 - 1 rows"
    with pytest.raises(ValueError, match=re.escape(message)):
        triselect.route_and_permute(tokens, 8)
    assert triselect.route_and_permute(tokens, 7).source.shape == (7 * 2**28,)


def test_an_unknown_backend_is_refused_with_a_gradient_too():
    with pytest.raises(ValueError, match="backend must be one of"):
        triselect.route_and_permute(LOGITS.clone().requires_grad_(), 2, backend="cuda")
