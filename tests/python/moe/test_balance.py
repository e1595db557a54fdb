"""How evenly routings spread the work: counts, scores, the closed form, the auxiliary loss."""

from math import sqrt

import numpy as np
import pytest
import torch

from triselect import grouped_topk
from triselect.moe.balance import (
    active_experts,
    balance_loss,
    device_load,
    expert_load,
    imbalance_score,
    straggler_factor,
)

EXPERTS, DEVICES, TOP_K = 64, 8, 8
every_routing = pytest.mark.parametrize(
    "routing", [{"num_expert_group": 8, "balanced": True}, {}], ids=["moge", "plain"]
)


def uniform(tokens: int, seed: int) -> torch.Tensor:
    """Router logits under which every set of experts is equally likely."""
    return torch.randn(tokens, EXPERTS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("tokens", "top_k"), [(0, 3), (1, 1), (37, 5), (5, 0)])
def test_loads_count_like_numpy(tokens: int, top_k: int, dtype: torch.dtype) -> None:
    experts = torch.from_numpy(np.random.default_rng(7).integers(-1, 12, (tokens, top_k))).to(dtype)
    load = np.bincount(experts.numpy().ravel() + 1, minlength=13)[1:]

    assert expert_load(experts, 12).dtype == torch.int64
    assert expert_load(experts, 12).tolist() == load.tolist()
    assert device_load(experts, 12, 3).tolist() == load.reshape(3, 4).sum(1).tolist()
    assert active_experts(experts, 12, 3).tolist() == (load.reshape(3, 4) > 0).sum(1).tolist()


def test_load_of_strided_experts() -> None:
    experts = torch.tensor([[0, 3], [1, 3], [2, 3]])
    assert expert_load(experts[::2, 1:], 4).tolist() == [0, 0, 0, 2]


def test_scores_of_a_batch_worked_by_hand() -> None:
    experts = torch.tensor([[0, 1, 2], [0, 1, 4], [1, 2, 5]])  # loads 7 and 2 on two devices
    assert imbalance_score(experts, 8, 2).item() == pytest.approx((7 - 2) / 3)
    assert straggler_factor(experts, 8, 2).item() == pytest.approx(7 / 4.5)
    assert active_experts(experts, 8, 2).tolist() == [3, 2]


def test_scores_of_no_tokens() -> None:
    nothing = torch.empty(0, 8, dtype=torch.int32)
    assert imbalance_score(nothing, EXPERTS, DEVICES).item() == 0
    assert straggler_factor(nothing, EXPERTS, DEVICES).item() == 1
    assert balance_loss(torch.empty(0, EXPERTS), nothing).item() == 0


@pytest.mark.parametrize(("tokens", "trials"), [(16, 2000), (256, 1000)])
def test_imbalance_of_uniform_top_k_follows_the_closed_form(tokens: int, trials: int) -> None:
    experts = grouped_topk(uniform(tokens * trials, seed=1), TOP_K).experts
    scores = [imbalance_score(batch, EXPERTS, DEVICES) for batch in experts.split(tokens)]
    mean = torch.stack(scores).mean().item()

    range_of_eight_normals = 2.847
    variance = TOP_K / DEVICES * (1 - 1 / DEVICES) * (EXPERTS - TOP_K) / (EXPERTS - 1)
    correlation = sqrt(DEVICES / (DEVICES - 1))
    expected = range_of_eight_normals * correlation * sqrt(variance / tokens)
    assert expected == pytest.approx({16: 0.671, 256: 0.168}[tokens], abs=5e-4)
    # Sampling error is below 1 %, and at 16 tokens the normal limit lies about 1 % too high.
    assert mean == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("tokens", [1, 16, 1000])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_moge_is_balanced_whatever_the_skew(tokens: int, devices: int) -> None:
    logits = uniform(tokens, seed=2) + torch.linspace(-5, 5, EXPERTS)
    balanced = grouped_topk(logits, TOP_K, num_expert_group=8, balanced=True).experts
    assert imbalance_score(balanced, EXPERTS, devices).item() == 0
    assert straggler_factor(balanced, EXPERTS, devices).item() == 1
    assert device_load(balanced, EXPERTS, devices).tolist() == [tokens * TOP_K // devices] * devices
    if devices > 1:
        assert imbalance_score(grouped_topk(logits, TOP_K).experts, EXPERTS, devices).item() > 1


@every_routing
def test_balance_loss_is_the_sum_over_experts(routing: dict) -> None:
    logits = uniform(50, seed=3) + torch.linspace(0, 2, EXPERTS)
    experts = grouped_topk(logits, TOP_K, **routing).experts
    expected = 0.0
    probability = logits.double().softmax(-1)
    for expert in range(EXPERTS):
        chose = sum(expert in row for row in experts.tolist())
        expected += EXPERTS / (TOP_K * 50) * chose * probability[:, expert].mean().item()
    assert balance_loss(logits, experts).item() == pytest.approx(expected, rel=1e-5)


def test_balance_loss_is_one_where_even_and_the_share_of_the_mass_where_not() -> None:
    even = torch.arange(8).view(8, 1)
    assert balance_loss(torch.zeros(8, 8), even).item() == pytest.approx(1)
    collapsed = torch.zeros(8, 1, dtype=torch.int32)
    logits = torch.zeros(8, 8)
    logits[:, 0] = 50.0
    assert balance_loss(logits, collapsed).item() == pytest.approx(8)


def test_balance_loss_gradient() -> None:
    logits = uniform(6, seed=4)[:, :8].clone().requires_grad_()
    experts = logits.topk(2).indices
    (gradient,) = torch.autograd.grad(balance_loss(logits, experts), logits)

    s = logits.detach().double().softmax(-1)
    share = expert_load(experts, 8).double() * 8 / (2 * 6)
    expected = s * (share - (s * share).sum(-1, keepdim=True)) / 6
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-7)


@every_routing
def test_balance_loss_gradient_is_the_slope_of_the_formula(routing: dict) -> None:
    """Central differences of the loss in float64; what was chosen stays as it is."""
    logits = (uniform(5, seed=7) + torch.linspace(0, 2, EXPERTS)).requires_grad_()
    experts = grouped_topk(logits, TOP_K, **routing).experts
    (gradient,) = torch.autograd.grad(balance_loss(logits, experts), logits)

    share = np.bincount(experts.flatten(), minlength=EXPERTS) * EXPERTS / (TOP_K * 5)

    def formula(x: np.ndarray) -> float:
        s = np.exp(x) / np.exp(x).sum(1, keepdims=True)
        return float(share @ s.mean(0))

    x = logits.detach().double().numpy()
    slopes = np.empty_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-4
        slopes[i] = (formula(x + step) - formula(x - step)) / 2e-4
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-7)


def test_minimising_the_balance_loss_evens_out_the_load() -> None:
    logits = (uniform(512, seed=5) + torch.linspace(0, 2, EXPERTS)).requires_grad_()

    def spread() -> tuple[torch.Tensor, float]:
        experts = grouped_topk(logits, TOP_K, num_expert_group=8, balanced=True).experts
        load = expert_load(experts, EXPERTS).double()
        return balance_loss(logits, experts), (load.std() / load.mean()).item()

    before = spread()[1]
    for _ in range(20):
        (gradient,) = torch.autograd.grad(spread()[0], logits)
        with torch.no_grad():
            logits -= 2000 * gradient
    assert spread()[1] < 0.7 * before


@pytest.mark.parametrize("function", [device_load, active_experts, imbalance_score])
def test_compiles_to_one_graph(function) -> None:
    experts = grouped_topk(uniform(9, seed=6), TOP_K).experts
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(experts, EXPERTS, DEVICES), function(experts, EXPERTS, DEVICES))


@pytest.mark.parametrize(
    "function", [device_load, active_experts, imbalance_score, straggler_factor]
)
def test_bad_input_is_named(function) -> None:
    experts = torch.zeros(4, 2, dtype=torch.int32)
    for message, args in {
        r"experts must be \(tokens, top_k\)": (experts[0], 8, 2),
        "experts must be int32 or int64": (experts.float(), 8, 2),
        "experts must be below num_experts = 8": (experts + 8, 8, 2),
        "got values from -2": (experts - 2, 8, 2),
        "num_experts must be at least 1": (experts, 0, 1),
        "num_devices must divide": (experts, 8, 3),
        "num_devices must divide the number of experts, 8, got 0": (experts, 8, 0),
    }.items():
        with pytest.raises(ValueError, match=message):
            function(*args)


def test_bad_input_of_the_loss_is_named() -> None:
    experts = torch.zeros(4, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="logits must be"):
        balance_loss(torch.zeros(4, 8, dtype=torch.int64), experts)
    with pytest.raises(ValueError, match="logits must be"):
        balance_loss(torch.zeros(8), experts)
    with pytest.raises(ValueError, match="experts must have the 3 rows"):
        balance_loss(torch.zeros(3, 8), experts)
    with pytest.raises(ValueError, match="experts must be below"):
        balance_loss(torch.zeros(4, 8), experts + 8)
