"""A bad argument is refused before any kernel runs: its name, what was expected, what came."""

import math
import re

import pytest
import torch

import triselect
from triselect.ops import backends

LOGITS = torch.zeros(3, 12)
VECTOR = torch.zeros(12)
META = torch.device("meta")

BAD = {
    "logits-list": ({"logits": [[1.0]]}, TypeError, "logits must be a tensor, got list"),
    "logits-1d": (
        {"logits": VECTOR},
        ValueError,
        "logits must be (tokens, experts), got shape (12,)",
    ),
    "logits-3d": ({"logits": LOGITS[None]}, ValueError, "logits must be (tokens, experts), got"),
    "logits-double": (
        {"logits": LOGITS.double()},
        TypeError,
        "logits must be float32, float16 or bfloat16, got torch.float64",
    ),
    "logits-int": ({"logits": LOGITS.int()}, TypeError, "got torch.int32"),
    "no-experts": ({"logits": LOGITS[:, :0]}, ValueError, "top_k must be between 1 and the 0"),
    "top_k-0": (
        {"top_k": 0},
        ValueError,
        "top_k must be between 1 and the 12 experts of the kept groups, got 0",
    ),
    "top_k-negative": ({"top_k": -1}, ValueError, "top_k must be between 1 and the 12"),
    "top_k-13": ({"top_k": 13}, ValueError, "top_k must be between 1 and the 12"),
    "top_k-beyond-kept": (
        {"top_k": 7, "num_expert_group": 4, "topk_group": 2},
        ValueError,
        "top_k must be between 1 and the 6 experts of the kept groups, got 7",
    ),
    "top_k-float": ({"top_k": 2.0}, TypeError, "top_k must be an int, got float"),
    "top_k-bool": ({"top_k": True}, TypeError, "top_k must be an int, got bool"),
    "top_k-none": ({"top_k": None}, TypeError, "top_k must be an int, got NoneType"),
    "top_k-tensor": ({"top_k": torch.tensor(2)}, TypeError, "top_k must be an int, got Tensor"),
    "groups-0": ({"num_expert_group": 0}, ValueError, "num_expert_group must divide"),
    "groups-negative": ({"num_expert_group": -3}, ValueError, "num_expert_group must divide"),
    "groups-5": (
        {"num_expert_group": 5},
        ValueError,
        "num_expert_group must divide the number of experts, 12, got 5",
    ),
    "groups-24": ({"num_expert_group": 24}, ValueError, "num_expert_group must divide"),
    "groups-float": ({"num_expert_group": 3.0}, TypeError, "num_expert_group must be an int, got"),
    "kept-0": (
        {"num_expert_group": 4, "topk_group": 0},
        ValueError,
        "topk_group must be between 1 and num_expert_group = 4, got 0",
    ),
    "kept-5": ({"num_expert_group": 4, "topk_group": 5}, ValueError, "topk_group must be between"),
    "kept-bool": ({"topk_group": True}, TypeError, "topk_group must be an int, got bool"),
    "balanced": (
        {"top_k": 5, "num_expert_group": 4, "balanced": True},
        ValueError,
        "top_k = 5 must be a multiple of topk_group = 4",
    ),
    "scoring_func": (
        {"scoring_func": "relu"},
        ValueError,
        "one of ('softmax', 'sigmoid', 'sqrt_softplus', 'identity'), got 'relu'",
    ),
    "group_score": (
        {"group_score": "mean"},
        ValueError,
        "group_score must be one of ('max', 'top2_sum'), got 'mean'",
    ),
    "factor-nan": (
        {"routed_scaling_factor": math.nan},
        ValueError,
        "routed_scaling_factor must be finite in float32, got nan",
    ),
    "factor-inf": (
        {"routed_scaling_factor": -math.inf},
        ValueError,
        "routed_scaling_factor must be finite in float32, got -inf",
    ),
    "factor-overflows": (
        {"routed_scaling_factor": 1e39},
        ValueError,
        "routed_scaling_factor must be finite in float32, got 1e+39",
    ),
    "factor-str": (
        {"routed_scaling_factor": "2"},
        TypeError,
        "routed_scaling_factor must be a number, got str",
    ),
    "balanced-none": ({"balanced": None}, TypeError, "balanced must be a bool, got NoneType"),
    "renormalize-str": ({"renormalize": "no"}, TypeError, "renormalize must be a bool, got str"),
    "backend": (
        {"backend": "cuda"},
        ValueError,
        "backend must be one of ('auto', 'reference', 'eager', 'triton', 'native'), got 'cuda'",
    ),
}
for name in ("e_score_correction_bias", "expert_scale"):
    BAD |= {
        f"{name}-list": ({name: [0.0] * 12}, TypeError, f"{name} must be a tensor, got list"),
        f"{name}-short": (
            {name: VECTOR[:11]},
            ValueError,
            f"{name} must be (experts,) = (12,), got (11,)",
        ),
        f"{name}-2d": ({name: VECTOR[None]}, ValueError, f"{name} must be (experts,) = (12,), got"),
        f"{name}-int": (
            {name: VECTOR.long()},
            TypeError,
            f"{name} must be float32, float16 or bfloat16, got torch.int64",
        ),
        f"{name}-double": ({name: VECTOR.double()}, TypeError, "got torch.float64"),
        f"{name}-device": (
            {name: VECTOR.to(META)},
            ValueError,
            f"{name} must be on cpu as the logits, got meta",
        ),
    }


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message, backend):
    arguments = {"logits": LOGITS, "top_k": 2, "backend": backend} | arguments
    with pytest.raises(error, match=re.escape(message)):
        triselect.grouped_topk(**arguments)


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        triselect.grouped_topk(LOGITS, 2, 4)


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(backends, "missing_native", lambda: "the C++ extension was not built: do")
    monkeypatch.setattr(backends, "missing_triton", lambda: "there is no GPU: get one")
    for name, why in (("native", "the C.. extension was not built"), ("triton", "there is no GPU")):
        with pytest.raises(triselect.BackendUnavailable, match=f"backend '{name}'.*: {why}"):
            triselect.grouped_topk(LOGITS, 2, backend=name)


def test_triton_is_not_for_cpu_tensors(monkeypatch):
    monkeypatch.setattr(backends, "missing_triton", lambda: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(triselect.BackendUnavailable, match="it runs on GPU tensors, got cpu"):
        triselect.grouped_topk(LOGITS, 2, backend="triton")


def test_a_gradient_does_not_change_what_is_refused():
    logits = LOGITS.clone().requires_grad_()
    with pytest.raises(ValueError, match="top_k must be between"):
        triselect.grouped_topk(logits, 13)
    with pytest.raises(ValueError, match="backend must be one of"):
        triselect.grouped_topk(logits, 2, backend="cuda")


def test_the_largest_arguments_allowed():
    for options in (
        {"top_k": 12},
        {"top_k": 6, "num_expert_group": 4, "topk_group": 2},
        {"top_k": 12, "num_expert_group": 12, "balanced": True},
    ):
        experts = triselect.grouped_topk(LOGITS, **options).experts
        assert experts.shape == (3, options["top_k"])


def test_meta_tensors_have_the_shapes_of_real_ones():
    weights, experts = triselect.grouped_topk(LOGITS.to(META), 2)
    assert weights.shape == experts.shape == (3, 2)
    assert (weights.dtype, experts.dtype) == (torch.float32, torch.int32)
