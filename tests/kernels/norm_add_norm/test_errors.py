"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import re

import pytest
import torch

from triselect.ops import backends, operator
from triselect.ops.norm_add_norm import norm_add_norm

from .cases import case

DRAWN = case(2, 3, 8)
HALVES = case(2, 3, 8, dtype=torch.float16)
BAD = {
    "y-list": ({"y": [1.0]}, TypeError, "y must be a tensor, got list"),
    "y-number": ({"y": torch.tensor(1.0)}, ValueError, "y must be (..., hidden), got shape ()"),
    "y-no hidden": (
        {"y": torch.zeros(3, 0)},
        ValueError,
        "y must be (..., hidden), got shape (3, 0)",
    ),
    "y-float64": (
        {"y": DRAWN.y.double()},
        TypeError,
        "y must be float32, float16 or bfloat16, got torch.float64",
    ),
    "y-int": (
        {"y": DRAWN.y.int()},
        TypeError,
        "y must be float32, float16 or bfloat16, got torch.int32",
    ),
    "residual-none": ({"residual": None}, TypeError, "residual must be a tensor, got NoneType"),
    "residual-shape": (
        {"residual": DRAWN.residual[0]},
        ValueError,
        "residual must be (2, 3, 8) as y, got shape (3, 8)",
    ),
    "residual-dtype": (
        {"residual": DRAWN.residual.half()},
        TypeError,
        "residual must be torch.float32 as y, got torch.float16",
    ),
    "residual-device": (
        {"residual": DRAWN.residual.to("meta")},
        ValueError,
        "residual must be on cpu as y, got meta",
    ),
    "post-list": ({"post_weight": [1.0]}, TypeError, "post_weight must be a tensor, got list"),
    "post-shape": (
        {"post_weight": DRAWN.post_weight[1:]},
        ValueError,
        "post_weight must be (hidden,) = (8,), got shape (7,)",
    ),
    "post-one": (
        {"post_weight": torch.ones(1)},
        ValueError,
        "post_weight must be (hidden,) = (8,), got shape (1,)",
    ),
    "post-2d": (
        {"post_weight": DRAWN.post_weight[None]},
        ValueError,
        "post_weight must be (hidden,) = (8,), got shape (1, 8)",
    ),
    "post-dtype": (
        {"post_weight": DRAWN.post_weight.half()},
        TypeError,
        "post_weight must be torch.float32 as y or float32, got torch.float16",
    ),
    "post-other dtype": (
        {"y": HALVES.y, "residual": HALVES.residual, "post_weight": DRAWN.post_weight.bfloat16()},
        TypeError,
        "post_weight must be torch.float16 as y or float32, got torch.bfloat16",
    ),
    "post-device": (
        {"post_weight": DRAWN.post_weight.to("meta")},
        ValueError,
        "post_weight must be on cpu as y, got meta",
    ),
    "next-list": ({"next_weight": 1.0}, TypeError, "next_weight must be a tensor, got float"),
    "next-shape": (
        {"next_weight": torch.ones(9)},
        ValueError,
        "next_weight must be (hidden,) = (8,), got shape (9,)",
    ),
    "next-dtype": (
        {"next_weight": DRAWN.next_weight.double()},
        TypeError,
        "next_weight must be torch.float32 as y or float32, got torch.float64",
    ),
    "next-device": (
        {"next_weight": DRAWN.next_weight.to("meta")},
        ValueError,
        "next_weight must be on cpu as y, got meta",
    ),
    "eps-bool": ({"eps": True}, TypeError, "eps must be a number, got bool"),
    "eps-none": ({"eps": None}, TypeError, "eps must be a number, got NoneType"),
    "eps-negative": ({"eps": -1e-5}, ValueError, "eps must be at least 0 and finite in float32"),
    "eps-nan": ({"eps": float("nan")}, ValueError, "eps must be at least 0 and finite in float32"),
    "eps-large": ({"eps": 1e39}, ValueError, "eps must be at least 0 and finite in float32"),
    "placement": (
        {"placement": "post"},
        ValueError,
        "placement must be one of ('branch', 'sum'), got 'post'",
    ),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message, backend, grad):
    arguments = {"backend": backend} | DRAWN._asdict() | arguments
    if grad:
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                arguments[name] = value.detach().requires_grad_()
    with pytest.raises(error, match=re.escape(message)):
        norm_add_norm(**arguments)


MISFITS = {
    "y-number": {0: torch.tensor(1.0)},
    "y-no hidden": {0: torch.zeros(3, 0), 1: torch.zeros(3, 0), 2: torch.zeros(0)},
    "y-float64": {0: DRAWN.y.double(), 1: DRAWN.y.double()},
    "y-int": {0: DRAWN.y.int(), 1: DRAWN.y.int()},
    "residual-shape": {1: DRAWN.residual[:1]},
    "residual-other shape": {1: DRAWN.residual.view(3, 2, 8)},
    "residual-dtype": {1: DRAWN.residual.half()},
    "post-shape": {2: torch.ones(7)},
    "post-2d": {2: torch.ones(1, 8)},
    "post-dtype": {2: torch.ones(8, dtype=torch.int32)},
    "next-shape": {3: torch.ones(1)},
    "next-number": {3: torch.tensor(1.0)},
    "next-dtype": {3: torch.ones(8, dtype=torch.float64)},
    "placement": {5: "post"},
}


@pytest.mark.parametrize("name", ["native", "eager", "reference", "auto"])
@pytest.mark.parametrize("changes", MISFITS.values(), ids=MISFITS.keys())
def test_the_operator_itself_refuses_what_does_not_fit(changes, name):
    """Called without the public function."""
    if name == "native" and (reason := backends.missing_native()):
        pytest.skip(reason)
    if name == "native" and not operator.has_kernel("norm_add_norm", "CPU"):
        pytest.skip("the C++ extension has no kernel for norm_add_norm")
    args = [changes.get(i, value) for i, value in enumerate((*DRAWN, 1e-5, "branch"))]
    with pytest.raises((ValueError, TypeError)):
        torch.ops.triselect.norm_add_norm.backend(*args, name)
    with pytest.raises((ValueError, TypeError)):
        torch.ops.triselect.norm_add_norm.default(*args)
