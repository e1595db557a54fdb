"""`fused_moe` against a formula in float64 and against the loop over experts that others run."""

import re

import numpy as np
import pytest
import torch

import triselect.moe.fused as module
from triselect import Routing, finalize, permute
from triselect.moe.fused import Shared, fused_moe
from triselect.ops.grouped_swiglu import grouped_swiglu
from triselect.ops.operator import has_kernel

from ...kernels.backends import assert_bits, every_dtype, every_index_dtype
from ...kernels.compiling import assert_compiles_once, compiler, fresh_dynamo  # noqa: F401
from ...kernels.compress.cases import random
from ...kernels.grouped_swiglu.cases import every_format
from ...kernels.grouped_swiglu.cases import stored as stored_as
from ...kernels.memory import growth
from .layers import (
    Layer,
    assert_no_worse,
    double,
    eager_loop,
    every_backend,
    formula,
    layer,
    moe,
)

SIZES = {
    "a token": {"tokens": 1},
    "a few": {"tokens": 5, "shared": 20},
    "many": {"tokens": 90, "hidden": 40, "inner": 20, "shared": 12},
    "padding": {"tokens": 40, "padding": 0.4, "shared": 8},
    "all experts": {"tokens": 9, "top_k": 8},
    "one expert": {"tokens": 30, "num_experts": 1, "top_k": 1},
    "sizes that nothing divides": {"tokens": 33, "hidden": 131, "inner": 67, "shared": 35},
}


@every_backend
@every_dtype
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_no_worse_than_the_loop_over_experts(backend, dtype, sizes):
    of = layer(**sizes, dtype=dtype)
    assert_no_worse(backend(*of), eager_loop(of), formula(double(of)))


@every_backend
@every_index_dtype
def test_experts_of_either_integer(backend, dtype):
    of = layer(padding=0.2)
    assert_bits(backend(*of._replace(experts=of.experts.to(dtype))), backend(*of))


@every_backend
@every_dtype
@every_format
def test_it_is_its_parts(backend, dtype, weights):
    """Bit for bit, with weights in every format, shared ones too."""
    of, rng = layer(30, hidden=140, inner=70, dtype=dtype), np.random.default_rng(0)
    gate_up, of_gate_up = stored_as(rng, (8, 140, 140), dtype, weights, random)
    down, of_down = stored_as(rng, (8, 140, 70), dtype, weights, random)
    shared = [t for t in (gate_up, down, of_gate_up, of_down) if t is not None]
    shared = Shared(*(backend.put(t[3]) for t in shared))
    hidden, routing = backend.put(of.hidden), Routing(*map(backend.put, of[1:3]))
    scales = {"gate_up_scale": backend.put(of_gate_up), "down_scale": backend.put(of_down)}
    gate_up, down, name = backend.put(gate_up), backend.put(down), backend.name
    got = fused_moe(hidden, routing, gate_up, down, shared=shared, **scales, backend=name)

    permutation = permute(routing.experts, 8, backend=name)
    offsets, source = permutation.offsets, permutation.source
    y = grouped_swiglu(hidden, gate_up, down, offsets, source=source, **scales, backend=name)
    alone = grouped_swiglu(
        hidden,
        gate_up[3:4],
        down[3:4],
        torch.tensor([0, 30], dtype=torch.int32, device=hidden.device),
        **{key: None if t is None else t[3:4] for key, t in scales.items()},
        backend=name,
    )
    weights = routing.weights
    assert_bits(got, finalize(y, weights, permutation, residuals=(alone,), backend=name))


@every_backend
@every_dtype
def test_shared_experts_are_one_stacked(backend, dtype):
    """Two networks of 16 are one of 32: gates, then ups, and `down` side by side."""
    of = layer(12, shared=32, dtype=dtype)
    gates, ups = of.shared_gate_up.view(2, 2, 16, 24).double().unbind()
    downs = of.shared_down.view(24, 2, 16).double().unbind(1)
    expected = formula(double(of._replace(shared_gate_up=None, shared_down=None)))
    for gate, up, down in zip(gates, ups, downs, strict=True):
        h = torch.nn.functional.silu(double(of).hidden @ gate.T) * (double(of).hidden @ up.T)
        expected = expected + h @ down.T
    assert_no_worse(backend(*of), eager_loop(of), expected)


@every_backend
@every_dtype
def test_no_tokens(backend, dtype):
    for shared in (0, 5):
        got = backend(*layer(0, shared=shared, dtype=dtype))
        assert (got.shape, got.dtype) == ((0, 24), dtype)


@every_backend
def test_padding_alone(backend):
    """Nothing but what every token goes through; without it, zero."""
    of = layer(5, shared=6)
    of.experts.fill_(-1)
    assert not backend(*of[:5]).any()
    assert_no_worse(backend(*of), eager_loop(of), formula(double(of)))


@every_backend
def test_weights_of_padding_have_no_influence(backend):
    of = layer(30, padding=0.4)
    other = of._replace(weights=of.weights.masked_fill(of.experts < 0, torch.nan))
    assert (of.experts < 0).any()
    assert_bits(backend(*other), backend(*of))


@every_backend
@pytest.mark.parametrize("tokens", [3, 100])
def test_a_token_does_not_depend_on_the_others(backend, tokens):
    """What these are, as long as each expert keeps the number of its rows."""
    of = layer(tokens)
    hidden = of.hidden.clone()
    hidden[1:] = torch.nan
    assert_bits(backend(*of._replace(hidden=hidden))[:1], backend(*of)[:1])


def parts(monkeypatch) -> list[int]:
    """Makes as little of the hidden size at a time as it can be; which, as they are made."""
    made, real = [], module.project

    def project(h, down, *args):
        made.append(down.shape[1])
        return real(h, down, *args)

    monkeypatch.setattr(module, "MOST", 1)
    monkeypatch.setattr(module, "project", project)
    return made


@every_backend
@every_dtype
@every_format
@pytest.mark.parametrize("tokens", [2, 60])
@pytest.mark.parametrize("hidden", [300, 256])
def test_a_part_of_the_hidden_size_at_a_time(backend, dtype, weights, tokens, hidden, monkeypatch):
    """To the last bit. Sums are of one product each, as their order is free."""

    def one_each(rng, *shape):
        w = np.zeros(shape, np.float32)
        at = rng.integers(0, shape[-1], (*shape[:-1], 1))
        np.put_along_axis(w, at, rng.choice([-1, 1, 2], at.shape).astype(np.float32), -1)
        return w

    rng = np.random.default_rng(0)
    of = layer(tokens, hidden=hidden, shared=6, padding=0.1, dtype=dtype)
    gate_up, of_gate_up = stored_as(rng, (8, 20, hidden), dtype, weights, one_each)
    down, of_down = stored_as(rng, (8, hidden, 10), dtype, weights, one_each)
    if of_down is not None:
        of_down = 2.0 ** torch.arange(of_down.numel()).remainder(3).view_as(of_down)
    of = of._replace(gate_up=gate_up, down=down)
    scales = {"gate_up_scale": of_gate_up, "down_scale": of_down}
    whole = backend(*of, **scales)
    assert whole.any(0).all()
    made = parts(monkeypatch)
    assert_bits(backend(*of, **scales), whole)
    assert made[-3:] == [128, 128, 44] if hidden == 300 else made[-2:] == [128, 128]


@every_backend
@pytest.mark.parametrize("tokens", [2, 60])
def test_parts_of_random_sums(backend, tokens, monkeypatch):
    of = layer(tokens, hidden=300, inner=40, shared=12)
    theirs, exact = eager_loop(of), formula(double(of))
    assert parts(monkeypatch) == []
    assert_no_worse(backend(*of), theirs, exact)


@every_backend
@every_dtype
@pytest.mark.parametrize("tiled", [False, True])
def test_out(backend, dtype, tiled, monkeypatch):
    of = layer(9, hidden=200, shared=6, dtype=dtype)
    expected = backend(*of)
    if tiled:
        monkeypatch.setattr(module, "MOST", 1)
        expected = backend(*of)
    of = Layer(*map(backend.put, of))
    out = torch.full((9, 200), torch.nan, dtype=dtype, device=backend.device)
    got = moe(*of, out=out, backend=backend.name)
    assert got is out
    assert_bits(out.cpu(), expected)


@every_backend
def test_inputs_are_left_alone(backend):
    of = layer(40, shared=6, padding=0.1)
    before = [t.clone() for t in of]
    backend(*of)
    assert_bits(of, before)


@every_backend
@every_dtype
def test_every_run_has_the_same_bits(backend, dtype):
    of = layer(100, hidden=64, inner=40, shared=24, dtype=dtype)
    first = backend(*of)
    for _ in range(3):
        assert_bits(backend(*of), first)


LEAVES = ("hidden", "weights", "gate_up", "down", "shared_gate_up", "shared_down")


def gradients(call, of: Layer, upstream: torch.Tensor) -> list[torch.Tensor]:
    leaves = {name: getattr(of, name).clone().requires_grad_() for name in LEAVES}
    y = call(*of._replace(**leaves))
    return [t.cpu() for t in torch.autograd.grad(y, list(leaves.values()), upstream.to(y))]


@every_backend
@every_dtype
@pytest.mark.parametrize("tokens", [3, 70])
@pytest.mark.parametrize("padding", [0.0, 0.3])
def test_gradients(backend, dtype, tokens, padding):
    """Of tokens, weights of the routing, and all weights: no worse than plain autograd."""
    of = layer(tokens, shared=14, padding=padding, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(of.hidden.shape, generator=generator).to(dtype)

    def mine(*of):
        return moe(*of, backend=backend.name)

    found = gradients(mine, Layer(*map(backend.put, of)), upstream)
    theirs = gradients(lambda *of: eager_loop(Layer(*of)), of, upstream)
    exact = gradients(lambda *of: formula(Layer(*of)), double(of), upstream)
    for name, *each in zip(LEAVES, found, theirs, exact, strict=True):
        assert each[0].dtype is getattr(of, name).dtype
        assert_no_worse(*each, dtype)
    assert not found[1][of.experts < 0].any()


@every_backend
@pytest.mark.parametrize("name", LEAVES)
def test_gradients_of_what_asks_for_them(backend, name, monkeypatch):
    """Also where nothing else does, and a part of the hidden size would be made at a time."""
    monkeypatch.setattr(module, "MOST", 1)
    of = layer(12, hidden=136, shared=6, padding=0.2)
    of = Layer(*map(backend.put, of))
    upstream = torch.ones_like(of.hidden)
    every = gradients(lambda *of: moe(*of, backend=backend.name), of, upstream)
    leaf = getattr(of, name).clone().requires_grad_()
    y = moe(*of._replace(**{name: leaf}), backend=backend.name)
    assert_bits(torch.autograd.grad(y, leaf, upstream)[0].cpu(), every[LEAVES.index(name)])
    with pytest.raises(ValueError, match="out has no gradient"):
        moe(*of._replace(**{name: leaf}), out=torch.empty_like(of.hidden), backend=backend.name)


@every_backend
def test_gradients_of_no_tokens(backend):
    of = Layer(*map(backend.put, layer(0, shared=6)))
    found = gradients(lambda *of: moe(*of, backend=backend.name), of, torch.ones_like(of.hidden))
    assert not any(t.any() for t in found)


def test_inference_makes_no_graph():
    of = layer()
    of.hidden.requires_grad_()
    assert moe(*of).requires_grad
    with torch.no_grad():
        assert not moe(*of).requires_grad
        assert moe(*of, out=torch.empty(7, 24)).grad_fn is None


@every_backend
def test_one_compilation_for_every_number_of_tokens(backend, compiler):  # noqa: F811
    of = Layer(*map(backend.put, layer(shared=6)))

    def layer_of(hidden, weights, experts):
        return moe(hidden * 2, weights, experts, *of[3:], backend=backend.name) + 1

    def inputs(tokens):
        return tuple(map(backend.put, layer(tokens, seed=tokens, padding=0.1)[:3]))

    assert_compiles_once(layer_of, inputs, compiler)


@every_backend
def test_gradients_of_a_compiled_function(backend, compiler):  # noqa: F811
    of = Layer(*map(backend.put, layer(shared=6)))

    def layer_of(hidden, weights, experts, gate_up):
        others = (of.down, of.shared_gate_up, of.shared_down)
        return moe(hidden * 2, weights, experts, gate_up, *others, backend=backend.name)

    def inputs(tokens):
        new = Layer(*map(backend.put, layer(tokens, seed=tokens, shared=6)))
        leaves = (new.hidden, new.weights, of.gate_up.clone())
        hidden, weights, gate_up = (t.requires_grad_() for t in leaves)
        return hidden, weights, new.experts, gate_up

    def trained(function):
        def run(hidden, weights, experts, gate_up):
            y = function(hidden, weights, experts, gate_up)
            upstream = torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y)
            return torch.autograd.grad(y, (hidden, weights, gate_up), upstream)

        return run

    assert_compiles_once(
        layer_of,
        inputs,
        compiler,
        few=(),
        wrap=trained,
        compare=lambda a, b: torch.testing.assert_close(a, b),  # inductor rounds in its own places
    )


@every_backend
def test_memory_where_outputs_of_experts_would_dominate(backend, monkeypatch):
    """32 MiB of them; of inputs, results and the 2 MiB at a time that are asked for here, 8."""
    copies = backend.name == "eager" or not has_kernel("grouped_swiglu_up", "CPU")
    if backend.device != "cpu" or copies:
        pytest.skip("plain PyTorch copies rows; a device has memory of its own")
    of = layer(256, hidden=4096, inner=16, top_k=8)
    outputs = 256 * 8 * 4096 * 4
    monkeypatch.setattr(module, "MOST", 2**21)
    with torch.no_grad():
        assert growth(lambda: backend(*of)) < outputs / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_the_experts_of_transformers(implementation, dtype):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = Qwen3MoeConfig(hidden_size=32, moe_intermediate_size=16, num_experts=8)
    config._experts_implementation = implementation
    of = layer(50, hidden=32, inner=16, dtype=dtype)
    theirs = Qwen3MoeExperts(config).to(dtype)
    theirs.load_state_dict({"gate_up_proj": of.gate_up, "down_proj": of.down})
    with torch.no_grad():
        expected = theirs(of.hidden, of.experts.long(), of.weights)
    assert_no_worse(moe(*of), expected.to(dtype), formula(double(of)))


OF = layer(padding=0.2, shared=6)
GIVEN = {
    "hidden": OF.hidden,
    "routing": Routing(OF.weights, OF.experts),
    "gate_up": OF.gate_up,
    "down": OF.down,
}
BAD = {
    "hidden-3d": (
        {"hidden": OF.hidden[None]},
        ValueError,
        "rows must be (rows, hidden), got shape (1, 7, 24)",
    ),
    "hidden-dtype": ({"hidden": OF.hidden.double()}, TypeError, "must be float32, float16 or"),
    "gate_up": ({"gate_up": OF.gate_up[..., 1:]}, ValueError, "gate_up must be (experts, 2 *"),
    "down": ({"down": OF.down[1:]}, ValueError, "down must be (8, 24, 10) (as gate_up), got (7,"),
    "down-dtype": ({"down": OF.down.half()}, TypeError, "down must be torch.float32 as rows"),
    "scale": (
        {"gate_up_scale": torch.ones(8, 20)},
        ValueError,
        "gate_up_scale goes with weights of 8 bits",
    ),
    "weights-list": (
        {"routing": Routing([1.0], OF.experts)},
        TypeError,
        "routing.weights must be a tensor, got list",
    ),
    "weights-dtype": (
        {"routing": Routing(OF.weights.bfloat16(), OF.experts)},
        TypeError,
        "routing.weights must be torch.float32, got torch.bfloat16",
    ),
    "weights-tokens": (
        {"routing": Routing(OF.weights[1:], OF.experts)},
        ValueError,
        "routing.weights must be (7, top_k) as hidden (7, 24), got shape (6, 3)",
    ),
    "experts-list": (
        {"routing": Routing(OF.weights, [0])},
        TypeError,
        "routing.experts must be a tensor, got list",
    ),
    "experts-1d": (
        {"routing": Routing(OF.weights, OF.experts[:, 0])},
        ValueError,
        "routing.experts must be (7, top_k) as hidden (7, 24), got shape (7,)",
    ),
    "experts-top_k": (
        {"routing": Routing(OF.weights, OF.experts[:, 1:])},
        ValueError,
        "routing.weights and routing.experts must have one shape, got (7, 3) and (7, 2)",
    ),
    "experts-dtype": (
        {"routing": Routing(OF.weights, OF.experts.float())},
        TypeError,
        "experts must be int32 or int64, got torch.float32",
    ),
    "experts-device": (
        {"routing": Routing(OF.weights, OF.experts.to("meta"))},
        ValueError,
        "routing.experts must be on cpu as hidden, got meta",
    ),
    "experts that are none": (
        {"routing": Routing(OF.weights, OF.experts + 8)},
        ValueError,
        "experts must be between -1 and 7",
    ),
    "shared-sizes": (
        {"shared": Shared(OF.shared_gate_up, OF.shared_down[1:])},
        ValueError,
        "down must be (1, 24, 6) (as gate_up), got (1, 23, 6)",
    ),
    "shared-scale": (
        {"shared": Shared(OF.shared_gate_up.to(torch.int8), OF.shared_down.to(torch.int8))},
        ValueError,
        "gate_up_scale must be given for weights of torch.int8",
    ),
    "out-shape": ({"out": torch.empty(6, 24)}, ValueError, "out must"),
    "out-dtype": ({"out": torch.empty(7, 24).half()}, TypeError, "out must"),
    "out with a gradient": (
        {"hidden": OF.hidden.clone().requires_grad_(), "out": torch.empty(7, 24)},
        ValueError,
        "out has no gradient",
    ),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_refused_by_name(arguments, error, message, backend, tiled, monkeypatch):
    if tiled:
        monkeypatch.setattr(module, "MOST", 1)
    with pytest.raises(error, match=re.escape(message)):
        fused_moe(**{"backend": backend} | GIVEN | arguments)


@pytest.mark.gpu
def test_a_captured_graph_takes_new_tokens():
    """Nothing waits for the device, or there would be no graph."""
    of = Layer(*(x.cuda() for x in layer(33, shared=6)))
    call = torch.no_grad()(lambda: moe(*of))
    call()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    for seed in range(1, 4):
        new = layer(33, shared=6, padding=0.2, seed=seed)
        for mine, theirs in zip(of, new, strict=True):
            mine.copy_(theirs)
        graph.replay()
        assert_bits(got, call())
