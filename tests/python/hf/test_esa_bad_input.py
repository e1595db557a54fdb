"""What `enable_esa` refuses, by name, and that it then leaves everything as it was."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.python.hf.esa_models import (
    MOE,
    SIZES,
    SMALL,
    WHOLE,
    attributes,
    make,
    padded,
    state,
    tokens,
)
from triselect import BackendUnavailable, esa
from triselect.hf import disable_esa, enable_esa

pytest.importorskip("transformers", minversion="5.23")

from transformers import (
    DynamicCache,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97))


def gemma() -> Any:
    return GemmaForCausalLM(GemmaConfig(**SIZES))


def granite() -> Any:
    """Like Llama, but for a factor here and there."""
    return GraniteForCausalLM(GraniteConfig(**SIZES))


def rope(**parameters: Any) -> Callable[[], Any]:
    return lambda: make(rope_parameters={"rope_theta": 100.0, **parameters})


LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "GPT-2": (gpt2, "model must be of a type.*got 'gpt2'"),
    "Gemma": (gemma, "model must be of a type.*got 'gemma'"),
    "Granite": (granite, "model must be of a type.*got 'granite'"),
    "no model of transformers": (lambda: nn.Linear(2, 2), "model must be of a type.*got 'Linear'"),
    "two models": (lambda: nn.ModuleList([make(), make()]), "model must be of a type"),
    "Mistral's window": (
        lambda: make("mistral", sliding_window=8),
        r"model\.layers\.0\.self_attn has a sliding window of 8",
    ),
    "a window from some layer on": (
        lambda: make("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
        r"model\.layers\.1\.self_attn has a sliding window of 8",
    ),
    "a window in layers in turn": (
        lambda: make("qwen2_moe", **MOE, use_sliding_window=True, sliding_window=8),
        "has a sliding window of 8",
    ),
    "dynamic positions": (
        rope(rope_type="dynamic", factor=2.0),
        "rotary positions of one of the types default, linear, llama3, yarn, got 'dynamic'",
    ),
    "long positions": (
        rope(rope_type="longrope", factor=2.0, original_max_position_embeddings=64, **LONG),
        "rotary positions of one of the types.*got 'longrope'",
    ),
    "partial positions": (
        rope(rope_type="linear", factor=2.0, partial_rotary_factor=0.5),
        "rotate its heads of 16 whole: partial rotary positions, of 8",
    ),
}


@pytest.mark.parametrize("what", MODELS)
def test_models(what: str) -> None:
    build, message = MODELS[what]
    model = build()
    before = modules(model)
    with pytest.raises(ValueError, match=message):
        enable_esa(model, WHOLE)
    assert modules(model) == before


def modules(model: nn.Module) -> list[Any]:
    configs = [getattr(m, "config", None) for m in model.modules()]
    chosen = [getattr(config, "_attn_implementation", None) for config in configs]
    return [(attributes(m), type(m)) for m in model.modules()] + chosen


def compressor(heads: int = 4, groups: int = 2, head_dim: int = 16) -> esa.Compressor:
    maps = torch.randn(2, 8, groups * head_dim).unbind()
    return esa.Compressor(*maps, heads=heads, groups=groups, head_dim=head_dim)


SHORT = {"initial": 2, "local": 8, "top_k": 6, "chunk": 4}
COMPRESSED = esa.Config(**SHORT)
ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no compressors": ({"config": COMPRESSED}, ValueError, "compressors must be given"),
    "too few": (
        {"config": COMPRESSED, "compressors": [compressor()]},
        ValueError,
        "compressors must be 2, one for each layer of the model, got 1",
    ),
    "for other heads": (
        {"config": COMPRESSED, "compressors": [compressor(), compressor(heads=8)]},
        ValueError,
        r"compressors\[1\] is for another model.*\(8, 2, 16\), those of the layer \(4, 2, 16\)",
    ),
    "for other groups": (
        {"config": COMPRESSED, "compressors": [compressor(groups=4), compressor()]},
        ValueError,
        r"compressors\[0\] is for another model.*\(4, 4, 16\)",
    ),
    "for other sizes": (
        {"config": COMPRESSED, "compressors": [compressor(), compressor(head_dim=8)]},
        ValueError,
        r"compressors\[1\] is for another model",
    ),
    "no compressor": (
        {"config": COMPRESSED, "compressors": [compressor(), None]},
        TypeError,
        "compressors must be esa.Compressor, got NoneType",
    ),
    "no config": ({"config": {"top_k": 4}}, TypeError, "config must be an esa.Config, got dict"),
    "a layer too many": (
        {"config": esa.Config(**SHORT, scorer="exact", layers={2: {"top_k": 8}})},
        ValueError,
        r"config has layers\[2\], the model has 2 layers",
    ),
    "more than the model's positions": (
        {"config": esa.Config(scorer="exact", local=250, chunk=8)},
        ValueError,
        r"local \+ chunk must be at most the 256 positions.*got 250 \+ 8",
    ),
    "more than them in one layer": (
        {"config": esa.Config(**SHORT, scorer="exact", layers={1: {"local": 300}})},
        ValueError,
        r"got 300 \+ 4",
    ),
    "no such backend": (
        {"config": WHOLE, "backend": "cuda"},
        ValueError,
        "backend must be one of",
    ),
}


@pytest.mark.parametrize("what", ARGUMENTS)
def test_arguments(what: str) -> None:
    options, error, message = ARGUMENTS[what]
    model = make()
    before = state(model)
    with pytest.raises(error, match=message):
        enable_esa(model, **options)
    assert state(model) == before


def test_a_backend_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    model = make()
    before = state(model)
    with pytest.raises(BackendUnavailable, match="triton"):
        enable_esa(model, WHOLE, backend="triton")
    assert state(model) == before


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        enable_esa("meta-llama/Llama-3-8B")


def test_twice() -> None:
    model = make()
    with enable_esa(model, WHOLE):
        before = state(model)
        with pytest.raises(ValueError, match="ESA is enabled in this model already"):
            enable_esa(model, SMALL)
        assert state(model) == before


def test_disabling_what_is_not_enabled() -> None:
    with pytest.raises(ValueError, match="ESA is not enabled in this LlamaForCausalLM"):
        disable_esa(make())


def test_models_of_one_configuration() -> None:
    model = make()
    twin = type(model)(model.config)
    with enable_esa(model, WHOLE):
        with pytest.raises(ValueError, match="shares its configuration object"):
            enable_esa(twin, WHOLE)
        with pytest.raises(ValueError, match="models that share one configuration object"):
            twin(tokens())


def test_caches_of_transformers() -> None:
    model = make()
    filled = model(tokens()).past_key_values
    with enable_esa(model, WHOLE), torch.no_grad():
        for cache in (filled, DynamicCache()):
            with pytest.raises(ValueError, match=r"leave it out.*got DynamicCache"):
                model(tokens(), past_key_values=cache)
            with pytest.raises(ValueError, match=r"leave it out.*got DynamicCache"):
                model.generate(tokens(), past_key_values=cache)
        with pytest.raises(ValueError, match=r"cache_implementation must not be given.*'static'"):
            model.generate(tokens(), cache_implementation="static")


def test_a_cache_of_another_model() -> None:
    model, other = make(), make(seed=1)
    with enable_esa(model, WHOLE) as enabled, enable_esa(other, WHOLE), torch.no_grad():
        cache = enabled.new_cache()
        model(tokens(), past_key_values=cache)
        for use in (other, other.generate):
            with pytest.raises(ValueError, match="past_key_values is the cache of another model"):
                use(tokens(), past_key_values=cache)
        assert cache.esa.lengths == [37, 37]
    with torch.no_grad(), pytest.raises(ValueError, match="ESA is not enabled now"):
        model(tokens(), past_key_values=cache)
    anew = pytest.raises(ValueError, match="or of this one before ESA was enabled anew")
    with enable_esa(model, WHOLE), torch.no_grad(), anew:
        model(tokens(), past_key_values=cache)


def test_another_batch() -> None:
    model = make()
    with enable_esa(model, WHOLE), torch.no_grad():
        cache = model(tokens()).past_key_values
        with pytest.raises(ValueError, match="past_key_values has 2 rows, got a batch of 3"):
            model(tokens(3), past_key_values=cache)


ONES = torch.ones(2, 37, dtype=torch.long)
RIGHT, HOLE = ONES.clone(), ONES.clone()
RIGHT[1, 30:], HOLE[1, 5] = 0, 0
COUNT = torch.arange(37)
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "padding on the right": ({"attention_mask": RIGHT}, "zeros only on the left"),
    "a hole": ({"attention_mask": HOLE}, "zeros only on the left"),
    "a mask of pairs": (
        {"attention_mask": torch.zeros(2, 1, 37, 37)},
        r"attention_mask must be \(batch, tokens\).*got shape \(2, 1, 37, 37\)",
    ),
    "masks by layer": (
        {"attention_mask": {"full_attention": None}},
        r"attention_mask must be \(batch, tokens\).*got dict",
    ),
    "a short mask": (
        {"attention_mask": ONES[:, :30]},
        r"attention_mask must be \(2, 37\) for 0 tokens in the cache and 37 new ones",
    ),
    "packed texts": ({"position_ids": (COUNT % 20)[None]}, "position_ids must count on"),
    "positions from elsewhere": ({"position_ids": COUNT[None] + 4}, "position_ids must count on"),
    "attention to the future": ({"is_causal": False}, "is_causal must not be False"),
}


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_calls(what: str, kind: str) -> None:
    options, message = CALLS[what]
    model = make(kind)
    with enable_esa(model, WHOLE) as enabled, torch.no_grad():
        said, cache = model(tokens()).logits, enabled.new_cache()
        with pytest.raises(ValueError, match=message):
            model(tokens(), past_key_values=cache, **options)
        assert cache.esa.lengths == []
        assert torch.equal(model(tokens(), past_key_values=cache).logits, said)


def test_padding_after_a_token_of_an_earlier_call() -> None:
    model, batch = make(), padded(31, 12)
    with enable_esa(model, WHOLE), torch.no_grad():
        cache = model(**batch).past_key_values
        mask = torch.cat((batch["attention_mask"], torch.tensor([[1], [0]])), 1)
        with pytest.raises(ValueError, match="zeros only on the left"):
            model(tokens(2, 1), attention_mask=mask, past_key_values=cache)
        with pytest.raises(ValueError, match="position_ids must count on"):
            model(tokens(2, 1), position_ids=torch.tensor([[0]]), past_key_values=cache)
        assert cache.esa.lengths == [31, 12]


def test_gradients() -> None:
    model = make()
    with enable_esa(model, WHOLE) as enabled:
        cache = enabled.new_cache()
        with pytest.raises(RuntimeError, match=r"ESA has no gradient.*torch\.no_grad\(\)"):
            model(tokens(), past_key_values=cache)
        assert cache.esa.lengths == []
        model.requires_grad_(False)
        embedded = model.model.embed_tokens(tokens()).requires_grad_()
        with pytest.raises(RuntimeError, match="ESA has no gradient"):
            model(inputs_embeds=embedded)
    assert model(inputs_embeds=embedded).logits.requires_grad


def test_dropout() -> None:
    model = make(attention_dropout=0.1)
    with enable_esa(model, WHOLE), torch.no_grad():
        model(tokens())
        with pytest.raises(ValueError, match=r"ESA has no dropout, got 0\.1: call model\.eval\(\)"):
            model.train()(tokens())


def test_another_attention_in_the_meantime() -> None:
    """Without its rotary embedding the model would give wrong answers."""
    model = make()
    said = model(tokens()).logits
    with enable_esa(model, WHOLE), torch.no_grad():
        model.set_attn_implementation("sdpa")
        with pytest.raises(ValueError, match="attention was set to 'sdpa' while ESA is enabled"):
            model(tokens())
    assert torch.equal(model(tokens()).logits, said)


def test_a_layer_alone() -> None:
    model = make()
    attention = model.model.layers[0].self_attn
    unrotated = torch.ones(1, 1, 16), torch.zeros(1, 1, 16)
    alone = pytest.raises(ValueError, match="only within a call of its whole model")
    with enable_esa(model, WHOLE), torch.no_grad(), alone:
        attention(torch.randn(2, 5, 32), position_embeddings=unrotated, attention_mask=None)


def test_a_copy_has_caches_of_its_own() -> None:
    model = make()
    enabled = enable_esa(model, WHOLE)
    twin = copy.deepcopy(model)
    with torch.no_grad(), pytest.raises(ValueError, match="cache of another model"):
        twin(tokens(), past_key_values=enabled.new_cache())
