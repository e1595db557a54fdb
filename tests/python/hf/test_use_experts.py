"""A model of transformers says with `use_experts` what it says without."""

import copy
import doctest
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers", minversion="5.23")

from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.moe import use_experts_implementation

from tests.python.hf.models import MODELS, make, mixtral, tokens
from triselect import BackendUnavailable
from triselect.hf import use_experts
from triselect.ops import backends

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def blocks(model: Any) -> list[Any]:
    return [layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "experts")]


def state(model: Any) -> list[Any]:
    """All that `use_experts` may change."""
    parts = [(dict(vars(m)), type(m), type(m).forward) for m in model.modules()]
    parameters = [(key, value.data_ptr()) for key, value in model.state_dict().items()]
    return [parts, parameters, model.config.to_dict(), model.get_experts_implementation()]


def test_the_same_logits(name: str) -> None:
    model = make(name)
    with torch.no_grad():
        before = model(tokens()).logits
        with use_experts(model) as in_use:
            found = model(tokens()).logits
        after = model(tokens()).logits
    torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-5)
    assert torch.equal(after, before)
    assert len(in_use.experts) == len(in_use.routers) == len(blocks(model)) >= 2
    assert in_use.experts[0].endswith(".mlp.experts")
    assert in_use.routers[0].endswith(".mlp.gate")


class Watch(TorchDispatchMode):
    """Keeps the names and the last arguments of triselect's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        space, name, *_ = str(function).split(".")
        if space == "triselect":
            self.called.append((name, args[-1]))
        return function(*args, **kwargs or {})


OPERATORS = ("grouped_topk", "permute", "grouped_swiglu_up", "grouped_swiglu_down", "finalize")


def test_experts_and_routers_run_here(name: str) -> None:
    """A model without gradients calls each of the operators once a layer."""
    model = make(name)
    with use_experts(model), torch.no_grad(), Watch() as watch:
        model(tokens())
    called = [name for name, _ in watch.called]
    assert {x: called.count(x) for x in OPERATORS} == dict.fromkeys(OPERATORS, len(blocks(model)))


def test_bfloat16_is_no_worse(name: str) -> None:
    """One layer's experts, against float64: off by what transformers is, and a rounding."""
    model = make(name, torch.bfloat16)
    block = blocks(model)[0]
    hidden = torch.randn(64, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    count = block.experts.gate_up_proj.shape[0]
    index = torch.rand(64, count, generator=torch.Generator().manual_seed(3)).argsort(1)[:, :2]
    weights = torch.rand(64, 2, generator=torch.Generator().manual_seed(4)).bfloat16()
    with torch.no_grad():
        theirs = block.experts(hidden, index, weights).double()
        with use_experts(model):
            ours = block.experts(hidden, index, weights)
    up, down = (p.detach().double() for p in block.experts.parameters())
    gate, linear = torch.einsum("tkih,th->tki", up[index], hidden.double()).chunk(2, -1)
    inner = gate * gate.sigmoid() * linear * weights.double()[..., None]
    truth = torch.einsum("tkhi,tki->th", down[index], inner)
    assert ours.dtype is torch.bfloat16
    error, budget = (ours.double() - truth).abs(), (theirs - truth).abs()
    rounding = truth.abs() * 2**-8
    assert error.mean() <= budget.mean() + rounding.mean()
    assert error.max() <= budget.max() + rounding.max()


def test_bfloat16_models_are_as_near_to_float32(name: str) -> None:
    """All layers, within 10 % in the mean.

    Of sequences that go to the same experts: one equal pair of router logits, cut apart elsewhere,
    moves all that follows.
    """
    model = make(name, torch.bfloat16)
    chosen: list[Tensor] = []
    for block in blocks(model):
        block.gate.register_forward_hook(lambda *args: chosen.append(args[2][2].sort(1).values))
    ids = tokens(8, 16)
    with torch.no_grad():
        theirs = model(ids).logits.float()
        with use_experts(model):
            ours = model(ids).logits.float()
        exact = copy.deepcopy(model).float()(ids).logits
    layers = len(blocks(model))
    pairs = zip(chosen[:layers], chosen[layers : 2 * layers], strict=True)
    same = torch.stack([(a == b).view(8, -1).all(1) for a, b in pairs]).all(0)
    assert same.sum() >= 4
    off, budget = ((x - exact)[same].abs().mean() for x in (ours, theirs))
    assert 0 < off <= 1.1 * budget


def test_the_same_text(name: str) -> None:
    model = make(name)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    before = model.generate(tokens(), **options)
    with use_experts(model):
        found = model.generate(tokens(), **options)
    assert found.shape == (2, 17)
    assert torch.equal(found, before)


def test_the_same_gradients(name: str) -> None:
    model = make(name).train()
    before = gradients(model)
    with use_experts(model):
        found = gradients(model)
    assert found.keys() == before.keys()
    assert any(key.endswith("gate.weight") for key in found)
    assert any(key.endswith("experts.gate_up_proj") for key in found)
    for key, grad in found.items():
        torch.testing.assert_close(grad, before[key], rtol=1e-4, atol=1e-5, msg=key)
        assert grad.any(), key


def gradients(model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    logits = model(tokens()).logits
    logits.log_softmax(-1)[..., 5].mean().backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def test_the_same_router_logits_and_loss() -> None:
    model = make("mixtral")
    with torch.no_grad():
        before = model(tokens(), output_router_logits=True)
        with use_experts(model):
            found = model(tokens(), output_router_logits=True)
    assert len(found.router_logits) == 3
    torch.testing.assert_close(found.router_logits, before.router_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.aux_loss, before.aux_loss)


def test_routers_return_what_they_returned(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = make(name, dtype)
        gate = blocks(model)[0].gate
        hidden = torch.randn(200, 32, generator=torch.Generator().manual_seed(6)).to(dtype)
        with torch.no_grad():
            before = gate(hidden)
            with use_experts(model):
                found = gate(hidden)
        assert [x.dtype for x in found] == [x.dtype for x in before]
        assert [x.shape for x in found] == [x.shape for x in before]
        assert torch.equal(found[0], before[0])
        # In 16 bits there are ties: then it is another expert of the same logit.
        ours, theirs = (x[0].gather(1, x[2]).sort(1) for x in (found, before))
        assert torch.equal(ours.values, theirs.values)
        assert (found[2].sort(1).values == before[2].sort(1).values).all(1).float().mean() > 0.9
        weights = [x[1].float().gather(1, at) for x, (_, at) in ((found, ours), (before, theirs))]
        unit = torch.finfo(before[1].dtype).eps
        torch.testing.assert_close(*weights, rtol=4 * unit, atol=0)


def test_undo_restores(name: str) -> None:
    model = make(name)
    before = state(model)
    in_use = use_experts(model)
    assert state(model) != before
    assert model.config._experts_implementation == "triselect"
    in_use.undo()
    assert state(model) == before
    in_use.undo()
    assert state(model) == before
    with pytest.raises(KeyError, match="inside"), use_experts(model):
        raise KeyError("inside")
    assert state(model) == before


def test_undo_restores_another_implementation() -> None:
    model = make("mixtral")
    model.set_experts_implementation("batched_mm")
    with use_experts(model):
        assert model.config._experts_implementation == "triselect"
    assert model.config._experts_implementation == "batched_mm"


def test_one_model_and_no_other() -> None:
    model, other = make("qwen3_moe"), make("qwen3_moe")
    before = state(other)
    with use_experts(model):
        assert state(other) == before
        with pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts already: undo that first"):
            use_experts(model)
        assert model.config._experts_implementation == "triselect"


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_a_named_backend(backend: str) -> None:
    model = make("deepseek_v3")
    with torch.no_grad():
        before = model(tokens()).logits
        with use_experts(model, backend=backend):
            assert model.config._experts_implementation == f"triselect-{backend}"
            with Watch() as watch:
                found = model(tokens()).logits
    torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-5)
    assert {(x, backend) for x in OPERATORS} <= set(watch.called)


def test_a_backend_that_cannot_run_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("mixtral")
    before = state(model)
    monkeypatch.setattr(backends, "missing_native", lambda: "it was not built")
    with pytest.raises(BackendUnavailable, match="it was not built"):
        use_experts(model, backend="native")
    with pytest.raises(ValueError, match="backend must be one of"):
        use_experts(model, backend="grouped_mm")
    assert state(model) == before


def test_compiles_and_copies() -> None:
    model = make("qwen3_moe")
    with use_experts(model), torch.no_grad():
        found = model(tokens()).logits
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(tokens()).logits, found, rtol=1e-5, atol=1e-5)
        twin = copy.deepcopy(model)
        nn.init.zeros_(model.model.layers[0].mlp.gate.weight)
        assert torch.equal(twin(tokens()).logits, found)


def test_experts_that_are_elsewhere(name: str) -> None:
    """Index E is none of these experts (transformers' expert parallelism)."""
    model = make(name)
    experts = blocks(model)[0].experts
    count = experts.gate_up_proj.shape[0]
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(20, 32, generator=generator)
    index = torch.rand(20, count + 1, generator=generator).argsort(1)[:, :3]
    weights = torch.rand(20, 3, generator=generator)
    assert (index == count).any()
    with torch.no_grad():
        model.config._experts_implementation = "eager"
        before = experts(hidden, index, weights)
        with use_experts(model):
            found = experts(hidden, index, weights)
            with pytest.raises(ValueError, match="experts"):
                experts(hidden, index + 2, weights)
    torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-5)
    assert index.max() == count  # the caller's own


def test_computes_in_the_dtype_of_the_weights() -> None:
    model = make("mixtral", torch.bfloat16)
    experts = blocks(model)[0].experts
    hidden, index = torch.randn(4, 32), torch.tensor([[0, 1]]).expand(4, 2)
    with torch.no_grad(), use_experts(model):
        found = experts(hidden, index, torch.ones(4, 2))
        rounded = experts(hidden.bfloat16(), index, torch.ones(4, 2))
    assert found.dtype is torch.float32
    assert torch.equal(found, rounded.float())


def test_no_tokens() -> None:
    model = make("mixtral")
    with torch.no_grad(), use_experts(model):
        experts = blocks(model)[0].experts
        empty = torch.empty(0, 2, dtype=torch.int64)
        assert experts(torch.empty(0, 32), empty, torch.empty(0, 2)).shape == (0, 32)


# What is refused, and that nothing is changed then.


class Experts(nn.Module):
    """As those of transformers; `use_experts_implementation` says what is different about them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(5, 80, 32))
        self.down_proj = nn.Parameter(torch.zeros(5, 32, 40))
        self.act_fn = nn.SiLU()

    def forward(self, hidden_states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        raise AssertionError


def own_gate(self: Any, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return nn.functional.silu(gate.clamp(max=7)) * up


def experts_with(config: Any, gate: Any = None, **flags: bool) -> nn.Module:
    kind = type("Odd", (Experts,), {"_apply_gate": gate} if gate else {})
    return use_experts_implementation(**flags)(kind)(config)


def with_parameter(name: str, value: Tensor) -> Any:
    def experts(config: Any) -> nn.Module:
        module = experts_with(config)
        setattr(module, name, nn.Parameter(value, requires_grad=False))
        return module

    return experts


ODD = {
    "transposed": (lambda c: experts_with(c, is_transposed=True), "weights are transposed"),
    "biases": (lambda c: experts_with(c, has_bias=True), "have biases"),
    "alternating": (lambda c: experts_with(c, is_concatenated=False), "gate and up alternate"),
    "no gate": (lambda c: experts_with(c, has_gate=False), "no gate"),
    "norm": (lambda c: experts_with(c, has_post_expert_norm=True), "a norm follows"),
    "gate": (lambda c: experts_with(c, gate=own_gate), "activation is its own"),
    "class": (lambda c: Experts(c), "does not follow the experts interface"),
    "int8": (
        with_parameter("down_proj", torch.zeros(5, 32, 40, dtype=torch.int8)),
        "down_proj is quantised: Parameter of torch.int8",
    ),
    "strides": (with_parameter("gate_up_proj", torch.zeros(5, 32, 80).mT), "is not contiguous"),
    "shapes": (with_parameter("gate_up_proj", torch.zeros(5, 40, 32)), "do not fit each other"),
    "dtypes": (
        with_parameter("down_proj", torch.zeros(5, 32, 40, dtype=torch.float16)),
        "do not fit each other",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_refused_before_anything_is_changed(case: str) -> None:
    make_experts, reason = ODD[case]
    model = make("mixtral")
    try:
        model.model.layers[2].mlp.experts = make_experts(model.config)
    except TypeError:
        pytest.skip("this version of transformers knows no such experts")
    before = state(model)
    with pytest.raises(ValueError, match=rf"model\.layers\.2\.mlp\.experts \(.*\): .*{reason}"):
        use_experts(model)
    assert state(model) == before


def test_another_activation_is_refused() -> None:
    model = mixtral(hidden_act="gelu")
    with pytest.raises(ValueError, match="activation is GELUActivation, not SiLU"):
        use_experts(model)
    model.set_experts_implementation("triselect")  # by hand: no wrong answer either
    with pytest.raises(ValueError, match="MixtralExperts cannot be computed by triselect"):
        model(tokens())


def test_a_model_without_experts_is_refused() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=9, num_hidden_layers=1, **sizes))
    with pytest.raises(ValueError, match="LlamaForCausalLM has none"):
        use_experts(model)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        use_experts("mixtral")  # type: ignore[arg-type]


def test_a_router_whose_forward_was_replaced_is_left_alone() -> None:
    model = make("mixtral")
    gate = blocks(model)[1].gate
    gate.forward = gate.forward
    mine = gate.forward
    in_use = use_experts(model)
    assert in_use.routers == ("model.layers.0.mlp.gate", "model.layers.2.mlp.gate")
    in_use.undo()
    assert gate.forward is mine


def test_looking_at_a_router_runs_no_hooks() -> None:
    model = make("mixtral")
    seen: list[Any] = []
    blocks(model)[0].gate.register_forward_hook(lambda *args: seen.append(args))
    random = torch.get_rng_state()
    with use_experts(model), torch.no_grad():
        assert not seen
        assert torch.equal(torch.get_rng_state(), random)
        model(tokens())
        assert len(seen) == 1


def test_without_transformers_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['transformers'] = None; import triselect.hf"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "triselect.hf needs transformers, 5 or later: pip install 'triselect[hf]'" in done.stderr


def test_the_example_runs() -> None:
    results = doctest.testmod(import_module("triselect.hf.use_experts"))
    assert results.attempted > 0
    assert results.failed == 0


def test_the_readme_s_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small model in place of the one that it would download."""
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    block = next(x for x in re.findall(r"```py\n(.*?)```", readme, re.DOTALL) if "use_experts" in x)
    model = make("qwen3_moe")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: model)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["model"] is model
    assert len(names["in_use"].experts) == len(names["in_use"].routers) == 3
    names["in_use"].undo()
