"""Compressors of all layers from a text, as from the queries and keys of each by themselves."""

import doctest
import importlib
import io
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triselect.esa import Rotary, calibrate, calibrate_model

pytest.importorskip("transformers", minversion="5.23")

from transformers import (
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "rope_theta": 100.0,
    "original_max_position_embeddings": 64,
}


def make(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    config = Qwen3Config(**SIZES, rope_parameters=YARN)
    model = Qwen3ForCausalLM(config).eval()
    for layer in model.model.layers:
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            nn.init.normal_(norm.weight, mean=1.0)
    return model


def text(rows: int = 6, length: int = 50) -> Tensor:
    return torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_hand(model: Any, ids: Tensor, position: int) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys of each layer, from the hidden states that transformers returns."""
    rotary = Rotary(model.model.rotary_emb.inv_freq, model.model.rotary_emb.attention_scaling)
    found = []
    states = model(ids, output_hidden_states=True).hidden_states
    for layer, x in zip(model.model.layers, states[:-1], strict=True):
        x, attention = layer.input_layernorm(x), layer.self_attn
        q = attention.q_proj(x).unflatten(2, (-1, 6))
        k = attention.k_proj(x).unflatten(2, (-1, 6))
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        q = rotary.rotate(q, torch.tensor([position]))
        found.append((q.flatten(0, 1), k.flatten(0, 1)))
    return found


@pytest.mark.parametrize("method", ["closed_form", "centered", "pca"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_as_layer_by_layer(kind: str, method: Any) -> None:
    model, ids = make(kind), text()
    found = calibrate_model(model, ids, dim=5, method=method, position=90, progress=False)
    assert len(found) == 2
    for compressor, (q, k) in zip(found, by_hand(model, ids, 90), strict=True):
        expected = calibrate(q, k, dim=5, method=method)
        assert compressor.layout == expected.layout == (4, 2, 6)
        assert (compressor.dim, compressor.method) == (5, method)
        same = compressor.query.T @ compressor.key, expected.query.T @ expected.key
        torch.testing.assert_close(*same, rtol=1e-3, atol=1e-4)


def test_where_queries_are_placed_matters() -> None:
    near, far = (
        calibrate_model(make("llama"), text(), dim=5, position=position, progress=False)[0]
        for position in (0, 40)
    )
    assert (near.query.T @ near.key - far.query.T @ far.key).abs().max() > 0.01


def test_however_the_text_comes() -> None:
    model, ids = make("llama"), text()
    expected = calibrate_model(model, ids, dim=5, progress=False)
    for pieces in (list(ids), iter(ids.split(2)), (row[None] for row in ids)):
        for found, wanted in zip(
            calibrate_model(model, pieces, dim=5, progress=False), expected, strict=True
        ):
            same = found.query.T @ found.key, wanted.query.T @ wanted.key
            torch.testing.assert_close(*same, rtol=1e-3, atol=1e-4)


def test_by_default() -> None:
    assert [c.dim for c in calibrate_model(make("llama"), text(), progress=False)] == [12, 12]


def test_the_model_is_left_alone() -> None:
    model = make("qwen3")
    hooks = [m._forward_hooks for m in model.modules()]
    before = [dict(vars(m)) for m in model.modules()]
    calibrate_model(model, text(), progress=False)
    with pytest.raises(IndexError):  # no such token
        calibrate_model(model, text() + 60, progress=False)
    assert [dict(vars(m)) for m in model.modules()] == before
    assert not any(hooks)


def test_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    calibrate_model(make("llama"), list(text()))
    assert "100%" in screen.getvalue()


def test_needs_no_transformers() -> None:
    code = "import sys, triselect.esa; print('transformers' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["False", "False"]


class Partial(nn.Module):
    """Rotates half of each head."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = self.k_proj = nn.Linear(8, 8)
        self.head_dim = 4
        self.register_buffer("inv_freq", torch.ones(1))


def gpt2() -> nn.Module:
    return GPT2Model(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61))


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "model": ({"model": "llama"}, TypeError, r"model must be a torch\.nn\.Module, got str"),
    "other layers": ({"model": gpt2()}, ValueError, "q_proj.*GPT2Model has none"),
    "no rotation": (
        {"model": make("llama").model.layers[0]},
        ValueError,
        "one module with the inv_freq.*LlamaDecoderLayer has 0",
    ),
    "partial rotation": ({"model": Partial()}, ValueError, "partial rotary positions, of 2"),
    "words": ({"text": "to be or not"}, TypeError, "text must be token ids, got str"),
    "numbers": ({"text": torch.rand(2, 5)}, ValueError, r"token ids .*got \(2, 5\) torch.float32"),
    "pairs": ({"text": text()[..., None]}, ValueError, r"text must be token ids \(B, T\)"),
    "nothing": ({"text": []}, ValueError, "queries must have at least one token"),
    "dim": ({"dim": 13}, ValueError, r"dim must be at most groups \* head_dim = 2 \* 6 = 12"),
    "no dim": ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
    "position": ({"position": -1}, ValueError, "position must be at least 0, got -1"),
    "method": (
        {"method": "gradient"},
        ValueError,
        "method must be one of closed_form, centered, pca, got 'gradient'",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what: str) -> None:
    options, error, message = BAD[what]
    given: dict[str, Any] = {"model": make("llama"), "text": text(), "progress": False} | options
    with pytest.raises(error, match=message):
        calibrate_model(given.pop("model"), given.pop("text"), **given)


def test_values_that_are_not_finite() -> None:
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="keys must be finite"):
        calibrate_model(model, text(), progress=False)


def test_examples_in_docstrings_run() -> None:
    results = doctest.testmod(importlib.import_module("triselect.esa.calibrate_model"))
    assert results.attempted > 0
    assert results.failed == 0
