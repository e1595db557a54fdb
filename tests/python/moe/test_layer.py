"""`MoGELayer`: router, experts and shared experts are the published formulas, forward and back."""

from copy import deepcopy

import pytest
import torch

from triselect import grouped_topk
from triselect.moe.layer import MoGELayer

from ...kernels.backends import assert_bits, every_dtype
from ...kernels.compiling import assert_compiles_once, compiler, fresh_dynamo  # noqa: F401
from .layers import Layer, assert_no_worse, double, eager_loop, formula

SIZES = {"num_experts": 12, "top_k": 3, "num_expert_group": 3}
KINDS = {
    "plain": {},
    "shared": {"shared_intermediate_size": 14},
    "pangu pro": {"shared_intermediate_size": 40, "expert_scale": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str = "pangu pro", dtype: torch.dtype | None = None, **options) -> MoGELayer:
    torch.manual_seed(0)
    layer = MoGELayer(24, 10, **SIZES | KINDS[kind] | options, dtype=dtype)
    if layer.router_scale is not None:
        torch.nn.init.uniform_(layer.router_scale, 0.5, 2)
    return layer


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, 24, generator=torch.Generator().manual_seed(1)).to(dtype)


def by_hand(layer: MoGELayer, hidden: torch.Tensor) -> torch.Tensor:
    """Equations 5 to 7 in the dtype of both: softmax over all, the best of each group."""
    x = hidden.flatten(0, -2)
    s = (x @ layer.router.T).softmax(-1)
    experts = torch.stack([part.argmax(-1) for part in s.chunk(3, -1)], -1) + torch.arange(0, 12, 4)
    weights = s.gather(1, experts)
    if layer.router_scale is not None:
        weights = weights * layer.router_scale[experts]
    shared = layer.shared_gate_up_proj, layer.shared_down_proj
    of = Layer(x, weights, experts, layer.gate_up_proj, layer.down_proj, *shared)
    return formula(of).view(hidden.shape)


@every_kind
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (2, 1, 4), (0,), (3, 0)], ids=str)
def test_the_formula(kind, shape):
    layer, x = made(kind), tokens(*shape)
    with torch.no_grad():
        got = layer(x)
        assert got.shape == x.shape
        assert_no_worse(got, by_hand(layer, x), by_hand(deepcopy(layer).double(), x.double()))


@every_dtype
def test_dtypes(dtype):
    """Given what the router chose: its product may be rounded to another expert."""
    layer, x = made(dtype=dtype), tokens(40, dtype=dtype)
    with torch.no_grad():
        routing = layer.route(x)
        of = Layer(
            x,
            *routing[:2],
            layer.gate_up_proj,
            layer.down_proj,
            layer.shared_gate_up_proj,
            layer.shared_down_proj,
        )
        assert routing.weights.dtype is torch.float32
        assert layer.router_scale.dtype is torch.float32
        assert_no_worse(layer(x), eager_loop(of), formula(double(of)))


def test_one_expert_of_each_group():
    experts = made().route(tokens(50)).experts
    assert torch.equal(experts // 4, torch.arange(3).expand(50, 3).int())


def test_the_routing_of_others():
    """Options in place of MoGE's: DeepSeek's, sigmoid scores of the best groups."""
    options = {
        "balanced": False,
        "topk_group": 2,
        "scoring_func": "sigmoid",
        "group_score": "top2_sum",
        "renormalize": True,
    }
    layer, x = made("plain", top_k=4, routing=options), tokens(30)
    expected = grouped_topk(x @ layer.router.T, 4, num_expert_group=3, **options)
    assert_bits(layer.route(x)[:2], expected)
    assert len(set((expected.experts // 4)[0].tolist())) <= 2


@every_kind
def test_gradients_reach_every_parameter(kind):
    layer, x = made(kind), tokens(2, 15)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))

    def gradients(layer, call):
        leaf = x.to(layer.router.dtype).requires_grad_()
        leaves = [leaf, *layer.parameters()]
        return torch.autograd.grad(call(layer, leaf), leaves, upstream.to(leaf))

    found = gradients(layer, lambda layer, x: layer(x))
    plain = gradients(layer, by_hand)
    exact = gradients(deepcopy(layer).double(), by_hand)
    assert len(found) == 1 + len(dict(layer.named_parameters()))
    for each in zip(found, plain, exact, strict=True):
        assert each[0].any()
        assert_no_worse(*each)


def test_it_learns():
    """A step along the gradient makes the loss smaller."""
    layer, x, target = made(), tokens(40), tokens(40).roll(1, 0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = (layer(x) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)


def test_parameters_are_named_as_those_of_transformers():
    shapes = {name: tuple(p.shape) for name, p in made().named_parameters()}
    assert shapes == {
        "router": (12, 24),
        "gate_up_proj": (12, 20, 24),
        "down_proj": (12, 24, 10),
        "router_scale": (12,),
        "shared_gate_up_proj": (80, 24),
        "shared_down_proj": (24, 40),
    }
    assert {name for name, _ in made("plain").named_parameters()} == {
        "router",
        "gate_up_proj",
        "down_proj",
    }


def test_weights_are_loaded():
    one, other, x = made(), MoGELayer(24, 10, **SIZES | KINDS["pangu pro"]), tokens(9)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert_bits(other(x), one(x))


@pytest.mark.parametrize("name", ["eager", "reference"])
def test_a_backend_by_name(name):
    layer, named, x = made(), made(backend=name), tokens(9)
    with torch.no_grad():
        torch.testing.assert_close(named(x), layer(x))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_expert_group": 5}, "num_expert_group"),
        ({"top_k": 4}, "top_k"),
        ({"top_k": 24}, "top_k"),
        ({"num_experts": 13}, "num_expert_group"),
        ({"routing": {"scoring_func": "tanh"}}, "scoring_func"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit(sizes, message):
    layer = MoGELayer(24, 10, **SIZES | sizes)
    with pytest.raises(ValueError, match=message):
        layer(tokens(3))


def test_tokens_of_another_size():
    with pytest.raises((ValueError, RuntimeError)):
        made()(torch.zeros(3, 23))


def test_one_compilation_for_every_number_of_tokens(compiler):  # noqa: F811
    layer = made().requires_grad_(False)
    assert_compiles_once(layer, lambda count: (tokens(count),), compiler)
