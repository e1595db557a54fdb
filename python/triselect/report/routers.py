"""Routers of published models, and real logits to feed them."""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import triselect


@dataclass(frozen=True)
class Router:
    """A model's routing: `options` are those of `triselect.grouped_topk`, vectors left out."""

    name: str
    label: str
    experts: int
    top_k: int
    groups: int = 1
    kept: int = 1
    balanced: bool = False
    scoring_func: str = "softmax"
    group_score: str = "max"
    renormalize: bool = False
    factor: float = 1.0
    bias: bool = False
    expert_scale: bool = False

    def options(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Keyword arguments of `triselect.grouped_topk`: those that are not its defaults.

        The vectors are made up (seeded): their values change no timing.
        """
        generator = torch.Generator().manual_seed(self.experts)
        noise = 0.1 * torch.randn(2, self.experts, generator=generator)
        options: dict[str, Any] = {"top_k": self.top_k}
        if self.groups > 1:
            options["num_expert_group"] = self.groups
        if self.kept < self.groups:
            options["topk_group"] = self.kept
        if self.balanced:
            options["balanced"] = True
        if self.scoring_func != "softmax":
            options["scoring_func"] = self.scoring_func
        if self.group_score != "max":
            options["group_score"] = self.group_score
        if self.bias:
            options["e_score_correction_bias"] = noise[0].to(device)
        if self.renormalize:
            options["renormalize"] = True
        if self.factor != 1.0:
            options["routed_scaling_factor"] = self.factor
        if self.expert_scale:
            options["expert_scale"] = (1 + noise[1]).to(device)
        return options

    def __call__(self, logits: Tensor, *, backend: str = "auto") -> triselect.Routing:
        return triselect.grouped_topk(logits, backend=backend, **self.options(logits.device))


def _moge(name: str, experts: int, groups: int, per_group: int = 1) -> Router:
    label = f"{experts} experts, {per_group} of each of {groups}"
    return Router(name, label, experts, groups * per_group, groups, groups, True, expert_scale=True)


def _biased(name: str, label: str, experts: int, top_k: int, **more: Any) -> Router:
    return Router(
        name,
        label,
        experts,
        top_k,
        scoring_func="sigmoid",
        renormalize=True,
        bias=True,
        **more,
    )


PANGU = Router("pangu-pro", "Pangu Pro MoE (64/8/1)", 64, 8, 8, 8, True, expert_scale=True)
DEEPSEEK_V3 = _biased(
    "deepseek-v3",
    "DeepSeek-V3 (256, 4 of 8, top 8)",
    256,
    8,
    groups=8,
    kept=4,
    group_score="top2_sum",
    factor=2.5,
)
OTHERS = (
    _moge("moge-80", 80, 8),
    _moge("moge-60", 60, 5, 3),
    _moge("moge-144", 144, 9),
    Router("deepseek-v2", "DeepSeek-V2 (160, 3 of 8, top 6)", 160, 6, 8, 3, factor=16.0),
    _biased("kimi-k2", "Kimi-K2 (384, top 8)", 384, 8, factor=2.827),
    Router("experts-512", "512 experts, top 22", 512, 22),
    Router("experts-896", "896 experts, top 16", 896, 16),
    Router("limited-balanced", "64 experts, 2 of each of the best 4 of 8", 64, 8, 8, 4, True),
)

# Three ways to choose 8 of the same 64 experts.
PLAIN = Router("plain", "plain top-8", 64, 8)
LIMITED = Router("limited", "group-limited (4 of 8)", 64, 8, 8, 4)
BALANCED = Router("balanced", "balanced (MoGE)", 64, 8, 8, 8, True)


class Sample(NamedTuple):
    """Router logits ``(layers, sequences, tokens, 64) float32`` and where they come from."""

    logits: Tensor
    source: str
    real: bool


@cache
def sample() -> Sample:
    """The shipped router logits, or where they cannot be read, noise of that shape and named so."""
    from triselect import models

    try:
        logits = models.router_logits().logits.float()
    except (ImportError, OSError) as error:
        noise = torch.randn(4, 16, 224, 64, generator=torch.Generator().manual_seed(0))
        return Sample(
            2 * noise, f"random numbers (the shipped logits cannot be read: {error})", False
        )
    return Sample(logits, "router logits of the shipped byte-level MoE on held-out text", real=True)


def tokens_of(
    router: Router, count: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Tensor:
    """Logits ``(count, E)`` of `router`, drawn from the sample.

    For more than its 64 experts, those of several layers stand side by side. Tokens are shuffled;
    where more are asked for than there are, they come again.
    """
    layers = sample().logits.flatten(1, 2)
    blocks = -(-router.experts // layers.shape[-1])
    generator = torch.Generator().manual_seed(blocks)
    if blocks == 1:
        pool = layers.flatten(0, 1)
    else:
        pool = torch.cat(
            [layers[i % len(layers)].roll(i // len(layers), 0) for i in range(blocks)], 1
        )
    order = torch.randperm(len(pool), generator=generator)
    index = order.repeat(-(-count // len(order)))[:count]
    return pool[index, : router.experts].to(dtype).to(device).contiguous()
