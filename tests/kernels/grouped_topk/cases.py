"""What the tests of grouped_topk feed it: published models' settings, data, backends."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import triselect
from triselect.ops.grouped_topk import SCORING_FUNCS

from .. import backends
from ..backends import DTYPES, LAYOUTS, every_dtype, over_backends, stored

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "SETTINGS",
    "Backend",
    "Setting",
    "every_backend",
    "every_dtype",
    "every_scoring",
    "every_setting",
    "every_trained_backend",
    "inputs",
    "limited",
    "moge",
]


class Setting(NamedTuple):
    """A router: its experts, its options as the public function takes them, its vectors."""

    experts: int
    options: dict[str, Any]
    bias: bool = False
    expert_scale: bool = False


def moge(experts: int, groups: int, per_group: int) -> Setting:
    options = {"top_k": groups * per_group, "num_expert_group": groups, "balanced": True}
    return Setting(experts, options, expert_scale=True)


def limited(experts: int, groups: int, kept: int, top_k: int, **options: Any) -> Setting:
    options |= {"top_k": top_k, "num_expert_group": groups, "topk_group": kept}
    return Setting(experts, options)


def sigmoid_bias(experts: int, top_k: int, factor: float, **options: Any) -> Setting:
    options |= {
        "top_k": top_k,
        "scoring_func": "sigmoid",
        "renormalize": True,
        "routed_scaling_factor": factor,
    }
    return Setting(experts, options, bias=True)


SETTINGS = {
    "pangu-pro": moge(64, groups=8, per_group=1),
    "moge-80": moge(80, groups=8, per_group=1),
    "moge-60": moge(60, groups=5, per_group=3),
    "moge-144": moge(144, groups=9, per_group=1),
    "deepseek-v2": limited(160, groups=8, kept=3, top_k=6, routed_scaling_factor=16.0),
    "deepseek-v3": sigmoid_bias(
        256, 8, 2.5, num_expert_group=8, topk_group=4, group_score="top2_sum"
    ),
    "openpangu-r": sigmoid_bias(80, 8, 2.5),
    "kimi-k2": sigmoid_bias(384, 8, 2.827),
    "nemotron": sigmoid_bias(512, 22, 1.0),
    "experts-896": Setting(896, {"top_k": 16}),
    "qwen3": Setting(128, {"top_k": 8, "renormalize": True}),
    "limited-balanced": limited(64, groups=8, kept=4, top_k=8, balanced=True),
    "limited-balanced-top2": limited(
        72, groups=6, kept=4, top_k=12, balanced=True, group_score="top2_sum"
    ),
    "sqrt-softplus": Setting(
        96, {"top_k": 6, "scoring_func": "sqrt_softplus", "renormalize": True}, bias=True
    ),
    "llama4": Setting(16, {"top_k": 1, "scoring_func": "sigmoid"}),
    "identity": limited(40, groups=4, kept=2, top_k=5, scoring_func="identity"),
}


def inputs(
    setting: Setting, tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, dict[str, Any]]:
    """Random logits ``(T, E)`` of a setting, and all its options, `top_k` among them."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

    logits = (2 * normal(tokens, setting.experts)).to(dtype)
    options = dict(setting.options)
    if setting.bias:
        options["e_score_correction_bias"] = 0.2 * normal(setting.experts)
    if setting.expert_scale:
        options["expert_scale"] = 1 + 0.2 * normal(setting.experts)
    return logits, options


route = stored(triselect.grouped_topk)
Backend = partial(backends.Backend, route)
every_backend = over_backends(route, "grouped_topk")
every_trained_backend = over_backends(route, "grouped_topk", "grouped_topk_backward")
every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
every_scoring = pytest.mark.parametrize("scoring_func", SCORING_FUNCS)
