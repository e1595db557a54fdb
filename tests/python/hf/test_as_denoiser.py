"""A masked diffusion model of transformers, decoded by LoPA."""

import doctest
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.python.hf.diffusion_models import CONFIGS, Plain, load, tensors
from tests.python.hf.esa_models import KINDS, SMALL, make
from tests.python.lopa.oracle import Sequence
from triselect import hf, lopa
from triselect.hf import TransformersDenoiser, as_denoiser

pytest.importorskip("transformers", minversion="5.23")

from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    GPT2Config,
    GPT2LMHeadModel,
)

CONFIG = lopa.Config(
    length=16, block_length=4, num_lookaheads=2, threshold=0.5, look_every=4, open_blocks=2
)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def of_kind(kind: str = "llama", attention: str = "sdpa", **options: Any) -> Any:
    """A model in float64 whose norms are float32's all the same: transformers has it so."""
    implementations = {"attn_implementation": attention, "experts_implementation": "eager"}
    model = make(kind, **implementations, **options).double()
    model.config.mask_token_id, model.config.shift_logits = 96, False
    return model


def tokens(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 97, shape, generator=generator, dtype=torch.int32)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def alone(model: Any, ids: Tensor, level: Tensor) -> Tensor:
    """Logits ``(T, V)`` of one sequence, by the model itself with a mask that is all there is."""
    sees = level <= level[:, None]
    mask = torch.zeros(sees.shape, dtype=model.dtype).masked_fill(~sees, -torch.inf)
    return model(input_ids=ids.long()[None], attention_mask=mask[None, None]).logits[0].float()


# ---- what a position sees ---------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_a_model_that_is_told_what_to_see(kind: str, attention: str) -> None:
    model = of_kind(kind, attention)
    denoiser = as_denoiser(model)
    given = tokens(2, 3, 9)
    level = ints(0, 0, 1, 2, 1, 3, 3, 2, 2), ints(1, 0, 0, 0, 2, 1, 5, 2, 1)
    found = denoiser(given, ints(0, 0), torch.stack(level), None)
    assert found.shape == (2, 3, 9, 97)
    for b in range(2):
        for row in range(3):
            close(found[b, row], alone(model, given[b, row], level[b]))
    causal = model(input_ids=given[0, :1].long()).logits[0].float()
    assert (causal - found[0, 0]).abs().max() > 0.1  # what the model does on its own


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_cache_of_prompts_of_different_lengths(attention: str) -> None:
    """Prefill, and two windows after it, of which the second sees the first one's first variant."""
    denoiser = as_denoiser(of_kind(attention=attention))
    prompt, lengths = tokens(3, 7), ints(7, 0, 4)
    cache = denoiser.new_cache(3, 15)
    last = denoiser.prefill(prompt, lengths, cache)
    first, second = tokens(3, 4, 5, seed=2), tokens(3, 2, 4, seed=3)
    level = ints(1, 1, 2, 2, 2).expand(3, -1), ints(3, 4, 3, 4).expand(3, -1)
    windows = [
        denoiser(first, lengths, level[0], cache),
        denoiser(second, lengths + 5, level[1], cache),
    ]
    for b, n in enumerate(lengths.tolist()):
        if n:
            close(last[b], alone(denoiser_model(denoiser), prompt[b, :n], torch.zeros(n))[-1])
        for row in range(4):
            ids = torch.cat([prompt[b, :n], first[b, row]])
            levels = torch.cat([torch.zeros(n), level[0][b]])
            close(windows[0][b, row], alone(denoiser_model(denoiser), ids, levels)[n:])
        for row in range(2):
            ids = torch.cat([prompt[b, :n], first[b, 0], second[b, row]])
            levels = torch.cat([torch.zeros(n), level[0][b], level[1][b]])
            close(windows[1][b, row], alone(denoiser_model(denoiser), ids, levels)[n + 5 :])


def denoiser_model(denoiser: TransformersDenoiser) -> Any:
    """The decoder and the head that the denoiser was given, as a model again."""

    def call(**given: Any) -> Any:
        hidden = denoiser.decoder(**given, use_cache=False).last_hidden_state
        return type("Output", (), {"logits": denoiser.head(hidden)})

    call.dtype = denoiser.decoder.dtype  # type: ignore[attr-defined]
    return call


def test_what_a_round_has_left_behind_is_not_seen() -> None:
    """Of the positions from `start` on the cache holds what an earlier window wrote."""
    denoiser = as_denoiser(of_kind())
    runs = []
    for earlier in (tokens(1, 1, 6, seed=4), tokens(1, 1, 6, seed=5)):
        cache = denoiser.new_cache(1, 12)
        denoiser.prefill(tokens(1, 3), ints(3), cache)
        denoiser(earlier, ints(3), torch.zeros(1, 6), cache)
        runs.append(denoiser(tokens(1, 2, 4), ints(3), torch.zeros(1, 4), cache))
    assert torch.equal(*runs)


def test_what_is_behind_the_caches_length_is_dropped() -> None:
    denoiser = as_denoiser(of_kind())
    given, start = tokens(2, 2, 40), ints(3, 1)
    level = torch.zeros(2, 40)
    caches = [denoiser.new_cache(2, length) for length in (10, 100)]
    logits = [denoiser(given, start, level, cache) for cache in caches]
    close(*logits)
    for small, large in zip(*caches, strict=True):
        close(small[:, :, :, :10], large[:, :, :, :10])
        assert small.shape[3] == 16


def test_variants_are_read_together_as_alone() -> None:
    denoiser = as_denoiser(of_kind("qwen3"))
    prompt, given, level = tokens(2, 5), tokens(2, 3, 6, seed=2), ints(1, 1, 2, 2, 3, 3)
    caches = [denoiser.new_cache(2, 11) for _ in range(4)]
    for cache in caches:
        denoiser.prefill(prompt, ints(5, 2), cache)
    level = level.expand(2, -1)
    together = denoiser(given, ints(5, 2), level, caches[0])
    for row in range(3):
        one = denoiser(given[:, row : row + 1], ints(5, 2), level, caches[row + 1])
        close(together[:, row], one[:, 0])
    close(caches[0].keys[:, :, :, :8], caches[1].keys[:, :, :, :8])  # the first one's
    assert (caches[0].values[:, :, :, :8] - caches[2].values[:, :, :, :8]).abs().max() > 0.1


def test_prefill_asks_the_head_for_one_position_of_each() -> None:
    denoiser = as_denoiser(of_kind())
    asked = []
    denoiser.head.register_forward_pre_hook(lambda module, given: asked.append(given[0].shape))
    prompt, lengths = tokens(3, 7), ints(2, 7, 1)
    without = denoiser.prefill(prompt, lengths, None)
    assert asked == [(3, 32)]
    close(without, denoiser.prefill(prompt, lengths, denoiser.new_cache(3, 8)))


def test_without_a_cache_nothing_is_kept() -> None:
    denoiser = as_denoiser(of_kind())
    kept = []
    denoiser.decoder.register_forward_hook(lambda *of: kept.append(of[2].past_key_values))
    denoiser.prefill(tokens(1, 3), ints(3), None)
    denoiser(tokens(1, 2, 3), ints(0), torch.zeros(1, 3), None)
    assert kept == [None, None]


class NothingWaits(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"), name
        return func(*args, **kwargs or {})


def test_nothing_waits_for_the_device() -> None:
    denoiser = as_denoiser(of_kind("qwen2"))
    cache = denoiser.new_cache(2, 12)
    with NothingWaits():
        denoiser.prefill(tokens(2, 4), ints(4, 2), cache)
        denoiser(tokens(2, 3, 5), ints(4, 2), torch.zeros(2, 5), cache)
        denoiser(tokens(2, 3, 5), ints(4, 2), torch.zeros(2, 5), None)


def test_half_precision() -> None:
    denoiser = as_denoiser(of_kind().bfloat16())
    cache = denoiser.new_cache(1, 12)
    assert cache.keys.dtype == torch.bfloat16
    denoiser.prefill(tokens(1, 4), ints(4), cache)
    found = denoiser(tokens(1, 2, 5), ints(4), ints(1, 1, 2, 2, 2)[None], cache)
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()


def test_no_gradients_are_kept() -> None:
    with torch.inference_mode(False):
        denoiser = as_denoiser(of_kind())
        cache = denoiser.new_cache(1, 8)
        first = denoiser.prefill(tokens(1, 3), ints(3), cache)
        then = denoiser(tokens(1, 1, 4), ints(3), torch.zeros(1, 4), cache)
    assert not first.requires_grad
    assert not then.requires_grad
    assert not cache.keys.requires_grad


@pytest.mark.gpu
def test_a_captured_call_reads_what_is_in_its_memory() -> None:
    denoiser = as_denoiser(make().to("cuda"), mask_token=96, shift=False)
    cache = denoiser.new_cache(2, 24)
    prompt, start, level = tokens(2, 9).cuda(), ints(9, 4).cuda(), torch.zeros(2, 8).int().cuda()
    denoiser.prefill(prompt, start, cache)
    given = tokens(2, 4, 8).cuda()
    denoiser(given, start, level, cache)  # warms up
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = denoiser(given, start, level, cache)
    given.copy_(tokens(2, 4, 8, seed=2))
    level[:, 4:] = 1
    start += 1
    graph.replay()
    captured = found.clone()
    torch.testing.assert_close(captured, denoiser(given, start, level, cache))


# ---- decoding ---------------------------------------------------------------------------


@pytest.fixture(params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


SETTINGS = {
    "LoPA": CONFIG,
    "D2F": replace(CONFIG, num_lookaheads=0),
    "block causal": replace(CONFIG, attention="block_causal", threshold=0.4),
    "everything": replace(CONFIG, attention="bidirectional", cache=False),
    "entropy": replace(CONFIG, score="neg_entropy", threshold=0.7),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_decoding_is_that_of_the_formulas(tmp_path: Path, kind: str, settings: str) -> None:
    """Prompts of different lengths together, against an oracle that has one, no cache, and only
    what the papers say of models and of decoding.
    """
    config = SETTINGS[settings]
    denoiser = as_denoiser(load(tmp_path, kind))
    prompts = [tokens(n, seed=n) % 22 for n in (5, 2, 7)]
    done = lopa.generate(denoiser, prompts, config)
    wins = 0
    for b, prompt in enumerate(prompts):
        oracle = Sequence(Plain(kind, tensors(kind)), config, prompt.tolist())  # type: ignore[arg-type]
        while not oracle.done():
            oracle.round(config.num_lookaheads)
        assert done.tokens[b].tolist() == oracle.x[: len(done.tokens[b])]
        assert done.metrics.rounds[b] <= len(oracle.rounds)
        for number, filled in enumerate(oracle.rounds, 1):
            found = (done.history.round[b] == number).nonzero().flatten()
            assert found.tolist() == filled
        wins += sum(won > 0 for won in oracle.won)
    assert (wins > 0) == (config.num_lookaheads > 0)
    assert len(torch.cat(done.tokens).unique()) > 3


@pytest.mark.parametrize("attention", ["full", "block_causal", "bidirectional"])
def test_a_batch_is_its_prompts_with_a_cache_and_without(
    tmp_path: Path, kind: str, attention: str
) -> None:
    denoiser = as_denoiser(load(tmp_path, kind, seed=1), max_length=40)
    denoiser.eos_token = None
    prompts = [tokens(n, seed=n) % 23 for n in (1, 8, 3)]
    caches = [False] if attention == "bidirectional" else [True, False]
    runs = []
    for cache in caches:
        config = replace(CONFIG, attention=attention, cache=cache, num_lookaheads=3)
        runs.append(lopa.generate(denoiser, prompts, config))
        for b, prompt in enumerate(prompts):
            one = lopa.generate(denoiser, [prompt], config)
            assert torch.equal(one.tokens[0], runs[-1].tokens[b])
            assert torch.equal(one.history.round[0], runs[-1].history.round[b])
    for a, b in zip(runs[0].tokens, runs[-1].tokens, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(runs[0].history.branch, runs[-1].history.branch)


def one_by_one(model: Plain, prompt: Tensor, length: int) -> Tensor:
    """As LLaDA and Dream decode: everything is seen, and the surest token is kept."""
    x = torch.cat([prompt.long(), torch.full((length,), model.mask_token)])
    while (masked := x == model.mask_token).any():
        logits = model.logits(x, torch.ones(len(x), len(x), dtype=torch.bool))
        if model.shift:
            logits = torch.cat([logits[:1], logits[:-1]])
        logits[:, model.mask_token] = -torch.inf
        prob, token = logits.softmax(-1).max(-1)
        surest = prob.where(masked, -1.0).argmax()
        x[surest] = token[surest]
    return x[len(prompt) :]


@pytest.mark.parametrize("seed", range(3))
def test_one_by_one_as_the_models_authors_decode(tmp_path: Path, kind: str, seed: int) -> None:
    denoiser = as_denoiser(load(tmp_path, kind, seed))
    denoiser.eos_token = None
    config = lopa.Config(
        length=12,
        block_length=12,
        threshold=1.0,
        num_lookaheads=0,
        attention="bidirectional",
        cache=False,
    )
    prompt = tokens(6, seed=seed) % 22
    done = lopa.generate(denoiser, prompt[None], config)
    expected = one_by_one(Plain(kind, tensors(kind, seed)), prompt, 12)
    assert done.tokens[0].tolist() == expected.tolist()
    assert done.metrics.rounds == [12]
    assert len(expected.unique()) > 2


# ---- what the configuration says, and what is refused -------------------------------------


def test_it_is_a_denoiser_that_the_configuration_describes(tmp_path: Path, kind: str) -> None:
    model = load(tmp_path, kind)
    denoiser = as_denoiser(model)
    assert isinstance(denoiser, lopa.Denoiser)
    assert (denoiser.mask_token, denoiser.eos_token) == (23, 22)
    assert denoiser.shift == (kind == "dream")
    assert denoiser.max_length == 64
    assert denoiser.device == torch.device("cpu")
    other = as_denoiser(model, mask_token=1, eos_token=2, shift=kind != "dream", max_length=9)
    assert (other.mask_token, other.eos_token, other.max_length) == (1, 2, 9)
    assert other.shift != denoiser.shift


def test_an_eos_token_that_is_a_list_of_one_or_none() -> None:
    model = of_kind()
    assert as_denoiser(model).eos_token is None
    model.config.eos_token_id = [7]
    assert as_denoiser(model).eos_token == 7


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97)).eval()


def headless() -> Any:
    model = of_kind().model
    model.config.mask_token_id = 96
    return model


def of_type(kind: str) -> Any:
    model = of_kind()
    model.config.model_type = kind
    return model


def half_elsewhere() -> Any:
    model = of_kind()
    model.lm_head = model.lm_head.to("meta")
    return model


def diffusion_gemma() -> Any:
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "global_head_dim": 8,
        "vocab_size": 32,
        "num_experts": 2,
        "top_k_experts": 1,
        "moe_intermediate_size": 8,
    }
    vision = {"model_type": "gemma4_vision", "hidden_size": 16, "num_hidden_layers": 1}
    with torch.device("meta"):
        config = DiffusionGemmaConfig(text_config=text, vision_config=vision)
        return DiffusionGemmaForBlockDiffusion(config)


def foreign_attention(layers: int) -> Any:
    """The same name, in code that comes with a checkpoint: who knows what it does."""
    model = of_kind()
    for layer in model.model.layers[:layers]:
        attention = type(layer.self_attn)
        layer.self_attn.__class__ = type("LlamaAttention", (attention,), {"__module__": "other"})
    return model


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "GPT-2": (gpt2, "must attend by one of LlamaAttention.*got 'gpt2'"),
    "DiffusionGemma": (diffusion_gemma, "'diffusion_gemma'.*has no mask token"),
    "Dream's own code": (lambda: of_type("Dream"), "'Dream'.*hf.load_diffusion.*Qwen2"),
    "LLaDA's own code": (lambda: of_type("llada"), "'llada'.*hf.load_diffusion.*Llama"),
    "foreign attention": (lambda: foreign_attention(2), "must attend by one of.*got 'llama'"),
    "some of it": (
        lambda: foreign_attention(1),
        "in each of its 2 layers, 'llama' has model.layers.1",
    ),
    "a layer": (lambda: of_kind().model.layers[0], "must attend by.*got 'LlamaDecoderLayer'"),
    "no head": (headless, "must have a head.*LlamaModel has none"),
    "a window": (lambda: of_kind("mistral", sliding_window=8), "layers.0.*sliding window of 8"),
    "dynamic positions": (
        lambda: of_kind(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 9.0}),
        "rotary positions.*got 'dynamic'",
    ),
    "flex_attention": (
        lambda: of_kind(attention="flex_attention"),
        "sdpa, eager, got 'flex_attention': model.set_attn_implementation\\(\"sdpa\"\\)",
    ),
    "training": (lambda: of_kind().train(), r"evaluation mode: model.eval\(\)"),
    "two devices": (half_elsewhere, "on one device, it is on cpu, meta"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_refused(name: str) -> None:
    make_it, message = MODELS[name]
    with pytest.raises(ValueError, match=message):
        as_denoiser(make_it(), mask_token=5, shift=False)


ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no mask": ({"mask_token": None}, ValueError, "mask_token must be given.*no mask_token_id"),
    "a mask outside": ({"mask_token": 97}, ValueError, "mask_token must be below the 97.*got 97"),
    "a mask below": ({"mask_token": -1}, ValueError, "mask_token must be.*not negative, got -1"),
    "a mask of a kind": ({"mask_token": "<m>"}, TypeError, "mask_token must be an int, got '<m>'"),
    "an eos outside": ({"eos_token": 100}, ValueError, "eos_token must be below the 97"),
    "both": ({"mask_token": 4, "eos_token": 4}, ValueError, "must differ, both are 4"),
    "no shift": ({"shift": None}, ValueError, "shift must be given: True for.*Dream"),
    "a number": ({"shift": 1}, TypeError, "shift must be a bool, got 1"),
    "no length": ({"max_length": 0}, ValueError, "max_length must be at least 1, got 0"),
    "half a length": ({"max_length": 9.5}, TypeError, "max_length must be an int, got 9.5"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_are_refused(name: str) -> None:
    changes, error, message = ARGUMENTS[name]
    given = {"mask_token": 96, "shift": False} | changes
    with pytest.raises(error, match=message):
        as_denoiser(make(), **given)


def test_several_eos_tokens_need_a_choice() -> None:
    model = of_kind()
    model.config.eos_token_id = [7, 8]
    with pytest.raises(ValueError, match=r"eos_token must be given: model.config has \[7, 8\]"):
        as_denoiser(model)
    assert as_denoiser(model, eos_token=8).eos_token == 8


def test_no_model() -> None:
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got str"):
        as_denoiser("Dream")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'Linear'"):
        as_denoiser(nn.Linear(2, 2))


def test_what_changes_in_the_model_later_is_seen() -> None:
    model = of_kind()
    denoiser = as_denoiser(model)
    with hf.enable_esa(model, SMALL), pytest.raises(ValueError, match="got 'triselect-esa'"):
        denoiser.prefill(tokens(1, 3), ints(3), None)
    model.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        denoiser(tokens(1, 1, 3), ints(0), torch.zeros(1, 3), None)
    model.eval().set_attn_implementation("eager")
    denoiser(tokens(1, 1, 3), ints(0), torch.zeros(1, 3), None)


def test_the_examples() -> None:
    with torch.inference_mode(False):
        for name in ("as_denoiser", "diffusion_config"):
            results = doctest.testmod(sys.modules[f"triselect.hf.{name}"])
            assert results.attempted > 0
            assert results.failed == 0


def test_the_readme_s_code_runs() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    block = next(x for x in re.findall(r"```py\n(.*?)```", readme, re.DOTALL) if "as_denoiser" in x)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["model"].shift
    assert names["model"].mask_token == 99
