"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import re

import pytest
import torch

from triselect.ops.merge import merge

from .cases import random_pair

PAIR = random_pair(2, 3, 8)
BAD = {
    "list": ({"out_a": [1]}, TypeError, "out_a must be a tensor, got list"),
    "lse-none": ({"lse_b": None}, TypeError, "lse_b must be a tensor, got NoneType"),
    "dtype": (
        {"out_a": PAIR.out_a.double()},
        TypeError,
        "out_a must be float32, float16 or bfloat16, got torch.float64",
    ),
    "two dtypes": (
        {"out_b": PAIR.out_b.half()},
        TypeError,
        "out_b must be torch.float32 as the others, got torch.float16",
    ),
    "lse dtype": (
        {"lse_a": PAIR.lse_a.half()},
        TypeError,
        "lse_a must be torch.float32 as the others, got torch.float16",
    ),
    "number": (
        {"out_a": torch.tensor(1.0)},
        ValueError,
        "out_a must be (..., dim), got a number",
    ),
    "shape": (
        {"out_b": PAIR.out_b[:1]},
        ValueError,
        "out_b must be (2, 3, 8) (as out_a), got (1, 3, 8)",
    ),
    "lse shape": (
        {"lse_b": PAIR.lse_b[..., None]},
        ValueError,
        "lse_b must be (2, 3) (as out_a), got (2, 3, 1)",
    ),
    "device": (
        {"out_b": PAIR.out_b.to("meta")},
        ValueError,
        "out_b must be on cpu as out_a, got meta",
    ),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message, backend):
    shapes = [tuple(x.shape) if isinstance(x, torch.Tensor) else None for x in PAIR]
    with pytest.raises(error, match=re.escape(message)):
        merge(**({"backend": backend} | PAIR._asdict() | arguments))
    assert shapes == [tuple(x.shape) for x in PAIR]
