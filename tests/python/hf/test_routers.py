"""Which routers `grouped_topk` computes, and that others remain the model's own."""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("transformers", minversion="5.23")

from triselect.hf import routers

E, H, K = 16, 32, 4
CONFIG = SimpleNamespace(
    hidden_size=H,
    num_experts=E,
    num_local_experts=E,
    num_experts_per_tok=K,
    norm_topk_prob=True,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
    topk_method="group_limited_greedy",
)
GROUPS = {"num_expert_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
# What the routers of these models are.
OURS = {
    "qwen3_moe.Qwen3MoeTopKRouter": {"scoring_func": "softmax", "renormalize": True},
    "mixtral.MixtralTopKRouter": {"scoring_func": "softmax", "renormalize": True},
    "granitemoe.GraniteMoeTopKRouter": {"scoring_func": "softmax", "renormalize": True},
    "jamba.JambaTopKRouter": {"scoring_func": "softmax", "renormalize": False},
    "deepseek_v2.DeepseekV2TopkRouter": GROUPS
    | {"scoring_func": "softmax", "renormalize": False, "group_score": "max"},
    "deepseek_v3.DeepseekV3TopkRouter": GROUPS
    | {"scoring_func": "sigmoid", "renormalize": True, "group_score": "top2_sum"},
}


def router_of(name: str, **options: Any) -> nn.Module:
    module, _, kind = name.partition(".")
    found = import_module(f"transformers.models.{module}.modeling_{module}")
    return getattr(found, kind)(SimpleNamespace(**vars(CONFIG) | options))


@pytest.mark.parametrize("name", OURS)
def test_is_ours(name: str) -> None:
    router = router_of(name)
    assert [name for name, _ in routers.find_routers(nn.ModuleDict({"gate": router}), E)] == [
        "gate"
    ]
    found = routers.match(router)
    assert found is not None
    assert found.options == {"routed_scaling_factor": 1.0} | OURS[name]


def test_what_the_options_of_a_router_change() -> None:
    plain = routers.match(router_of("qwen3_moe.Qwen3MoeTopKRouter", norm_topk_prob=False))
    assert plain is not None
    assert plain.options["renormalize"] is False
    greedy = routers.match(router_of("deepseek_v2.DeepseekV2TopkRouter", topk_method="greedy"))
    assert greedy is not None
    assert "num_expert_group" not in greedy.options


class Router(nn.Module):
    """Softmax, the best k: each below does one thing else."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k = K
        self.routed_scaling_factor = 2.5
        self.weight = nn.Parameter(torch.zeros(E, H))

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(-1)

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        logits = self.logits(hidden)
        weights, experts = self.scores(logits).topk(K)
        return logits, weights, experts


class Capped(Router):
    def logits(self, hidden: Tensor) -> Tensor:
        return 30 * torch.tanh(super().logits(hidden) / 30)


class Scaled(Router):
    def scores(self, logits: Tensor) -> Tensor:
        return (logits.float() * 1.01).softmax(-1)


class Probabilities(Router):
    """What transformers 5.0 returns as logits."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        logits, *routing = super().forward(hidden)
        return logits.softmax(-1), *routing


class Never(Router):
    """One expert is never chosen."""

    def scores(self, logits: Tensor) -> Tensor:
        return super().scores(logits) * (torch.arange(E) != 3)


class Biased(Router):
    """Deselected groups get zeros, which negative keys of the others lose to."""

    def __init__(self) -> None:
        super().__init__()
        self.num_group, self.topk_group = 4, 2
        self.register_buffer("e_score_correction_bias", torch.zeros(E))

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        logits = self.logits(hidden)
        scores = logits.float().sigmoid()
        keys = (scores + self.e_score_correction_bias).view(-1, 4, E // 4)
        best = keys.topk(2).values.sum(-1).topk(2).indices
        kept = torch.zeros(len(hidden), 4).scatter(1, best, 1)[..., None]
        experts = self.chosen(keys, kept.bool()).flatten(1).topk(K).indices
        return logits, scores.gather(1, experts), experts

    def chosen(self, keys: Tensor, kept: Tensor) -> Tensor:
        return keys.masked_fill(~kept, 0.0)


class BiasedWell(Biased):
    def chosen(self, keys: Tensor, kept: Tensor) -> Tensor:
        return keys.masked_fill(~kept, float("-inf"))


class NoCast(Router):
    """Under autocast too, the product is in float32."""

    def logits(self, hidden: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.linear(hidden.float(), self.weight.float())


class Fails(Router):
    def logits(self, hidden: Tensor) -> Tensor:
        raise RuntimeError("another kind of module")


class Called(Router):
    """Its block hands it more than tokens."""

    def forward(self, hidden: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
        return super().forward(hidden)


class Short(Router):
    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        return super().forward(hidden)[1:]


@pytest.mark.parametrize("kind", [Router, BiasedWell])
def test_what_the_others_differ_from_is_ours(kind: type[nn.Module]) -> None:
    found = routers.match(kind())
    assert found is not None
    assert found.options["routed_scaling_factor"] == 1.0
    assert found.rounds is False


@pytest.mark.parametrize(
    "kind", [Capped, Scaled, Probabilities, Never, Biased, NoCast, Fails, Called, Short]
)
def test_is_not_ours(kind: type[nn.Module]) -> None:
    assert routers.match(kind()) is None


def test_what_a_router_looks_like() -> None:
    def names(**children: nn.Module) -> list[str]:
        return [name for name, _ in routers.find_routers(nn.ModuleDict(children), E)]

    other, more, numberless = Router(), Router(), Router()
    other.weight = nn.Parameter(torch.zeros(E + 1, H))
    more.extra = nn.Parameter(torch.zeros(1))
    del numberless.top_k
    assert names(gate=Router(), biased=Biased()) == ["gate", "biased"]
    assert names(other=other, more=more, numberless=numberless, mlp=nn.Linear(H, E)) == []


def test_weights_of_the_router_are_not_looked_at() -> None:
    """Nor changed: they may be on another device, or nowhere yet."""
    router = Router().to(device="meta")
    found = routers.match(router)
    assert found is not None
    assert router.weight.is_meta


def test_kinds() -> None:
    """Layers of one model are compared once; what decides what they compute tells them apart."""
    one, other = Router(), Router()
    nn.init.ones_(other.weight)
    assert routers.kind(one) == routers.kind(other)
    for change in (
        {"top_k": 3},
        {"routed_scaling_factor": 1.5},
        {"forward": other.forward},
        {"weight": nn.Parameter(torch.zeros(E, H, dtype=torch.float64))},
        {"weight": nn.Parameter(torch.zeros(E - 1, H))},
    ):
        changed = Router()
        for name, value in change.items():
            setattr(changed, name, value)
        assert routers.kind(changed) != routers.kind(one)
    assert routers.kind(Capped()) != routers.kind(one)
