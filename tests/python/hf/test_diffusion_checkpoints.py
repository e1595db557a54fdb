"""Checkpoints with the published names become models of transformers that compute the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.python.hf.diffusion_models import CONFIGS, DREAM, LLADA, Plain, load, tensors, write
from triselect import hf

pytest.importorskip("transformers", minversion="5.23")

from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


@pytest.fixture(params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def logits(model: Any, ids: Tensor) -> Tensor:
    """Of one sequence in which everything is seen."""
    nowhere = torch.zeros(1, dtype=torch.int32)
    everything = torch.zeros(1, len(ids), dtype=torch.int32)
    return hf.as_denoiser(model)(ids[None, None], nowhere, everything, None)[0, 0]


def shard(folder: Path, given: dict[str, Tensor]) -> None:
    """In place of the one file: three, with tensors dealt out in turn, and their index."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    files = [f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
    place = {name: files[i % 3] for i, name in enumerate(given)}
    for file in files:
        save_file({n: given[n].contiguous() for n in given if place[n] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("seed", range(3))
def test_a_checkpoint_computes_what_the_formulas_say(tmp_path: Path, kind: str, seed: int) -> None:
    model = load(tmp_path, kind, seed)
    ids = torch.randint(0, 24, (40,), generator=torch.Generator().manual_seed(seed))
    expected = Plain(kind, tensors(kind, seed)).logits(ids, torch.ones(40, 40, dtype=torch.bool))
    torch.testing.assert_close(logits(model, ids), expected.float(), rtol=1e-4, atol=1e-4)
    assert expected.abs().max() > 1


def test_a_checkpoint_in_parts_is_the_same(tmp_path: Path, kind: str) -> None:
    whole = load(tmp_path, kind).state_dict()
    shard(tmp_path, tensors(kind))
    parts = hf.load_diffusion(str(tmp_path)).state_dict()
    assert whole.keys() == parts.keys()
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_a_model_ready_to_be_decoded(tmp_path: Path, kind: str) -> None:
    model = load(tmp_path, kind)
    assert type(model).__name__ == {"dream": "Qwen2ForCausalLM", "llada": "LlamaForCausalLM"}[kind]
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float64}  # as stored
    assert {str(x.device) for x in (*model.parameters(), *model.buffers())} == {"cpu"}
    half = hf.load_diffusion(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    frequencies = half.model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32  # rounded, positions would be others
    theta = CONFIGS[kind]["rope_theta"]
    torch.testing.assert_close(frequencies, theta ** -(torch.arange(4) / 4))


def test_it_is_saved_and_loaded_as_any_other(tmp_path: Path, kind: str) -> None:
    """By transformers, and `as_denoiser` still knows what it is."""
    model = load(tmp_path, kind)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    ids = torch.arange(20)
    assert torch.equal(logits(model, ids), logits(again, ids))
    denoisers = hf.as_denoiser(model), hf.as_denoiser(again)
    for name in ("mask_token", "eos_token", "shift", "max_length"):
        assert getattr(denoisers[0], name) == getattr(denoisers[1], name)


@pytest.mark.parametrize(
    ("kind", "setting"), [("dream", "tie_word_embeddings"), ("llada", "weight_tying")]
)
def test_a_head_that_is_the_embedding(tmp_path: Path, kind: str, setting: str) -> None:
    given = tensors(kind)
    head, embedding = {
        "dream": ("lm_head.weight", "model.embed_tokens.weight"),
        "llada": ("model.transformer.ff_out.weight", "model.transformer.wte.weight"),
    }[kind]
    stored = {name: x for name, x in given.items() if name != head}
    model = hf.load_diffusion(write(tmp_path, kind, stored, **{setting: True}))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.arange(20)
    plain = Plain(kind, given | {head: given[embedding]})
    expected = plain.logits(ids, torch.ones(20, 20, dtype=torch.bool)).float()
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)


def test_fewer_heads_of_keys_and_values(tmp_path: Path) -> None:
    """LLaDA's configuration has them; no checkpoint that is published does."""
    given = tensors("llada")
    for name in given:
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            given[name] = given[name][:16].contiguous()
    model = hf.load_diffusion(write(tmp_path, "llada", given, n_kv_heads=2))
    ids = torch.arange(20)
    expected = Plain("llada", given).logits(ids, torch.ones(20, 20, dtype=torch.bool)).float()
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)


# ---- configurations -----------------------------------------------------------------------


def test_the_published_configurations() -> None:
    dream, llada = hf.dream_config(), hf.llada_config()
    for config, parameters in ((dream, 7.615616512e9), (llada, 8.015581184e9)):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config).eval()
        assert sum(p.numel() for p in model.parameters()) == parameters
    assert (dream.mask_token_id, dream.eos_token_id, dream.shift_logits) == (151666, 151643, True)
    assert (llada.mask_token_id, llada.eos_token_id, llada.shift_logits) == (126336, 126081, False)
    assert (dream.rope_parameters["rope_theta"], llada.rope_parameters["rope_theta"]) == (1e6, 5e5)
    assert (dream.rms_norm_eps, llada.rms_norm_eps) == (1e-6, 1e-5)


def test_a_random_model_of_other_sizes() -> None:
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": None, "mlp_hidden_size": 64}
    config = hf.llada_config(**sizes, vocab_size=60, embedding_size=None, mask_token_id=59)
    assert config.vocab_size == 60
    with torch.device("cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    denoiser = hf.as_denoiser(model, eos_token=58)
    assert denoiser.new_cache(1, 3).keys.shape == (2, 1, 4, 16, 8)


SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("dream", {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling of Dream must be"),
    ("dream", {"use_mrope": True}, "use_mrope of Dream must be False, got True"),
    ("dream", {"use_sliding_window": True}, "use_sliding_window of Dream"),
    ("dream", {"hidden_act": "gelu"}, "hidden_act of Dream must be 'silu', got 'gelu'"),
    ("dream", {"architectures": ["DreamForCausalLM"]}, r"architectures of Dream must be \['Dream"),
    ("dream", {"block_size": 32}, "block_size = 32 is not known of Dream: is it another model"),
    ("dream", {"head_dim": 128}, "head_dim = 128 is not known"),
    ("dream", {"quantization_config": {"bits": 4}}, "quantization_config = .* is not known"),
    ("llada", {"alibi": True}, "alibi of LLaDA must be False"),
    ("llada", {"rope": False}, "rope of LLaDA must be True, got False"),
    ("llada", {"layer_norm_type": "default"}, "layer_norm_type of LLaDA must be 'rms'"),
    ("llada", {"layer_norm_with_affine": False}, "layer_norm_with_affine of LLaDA"),
    ("llada", {"block_type": "sequential"}, "block_type of LLaDA must be 'llama'"),
    ("llada", {"block_group_size": 2}, "block_group_size of LLaDA must be 1"),
    ("llada", {"activation_type": "swiglu"}, "activation_type of LLaDA must be 'silu'"),
    ("llada", {"include_bias": True}, "include_bias of LLaDA"),
    ("llada", {"include_qkv_bias": True}, "include_qkv_bias of LLaDA"),
    ("llada", {"bias_for_layer_norm": True}, "bias_for_layer_norm of LLaDA"),
    ("llada", {"attention_layer_norm": True}, "attention_layer_norm of LLaDA"),
    ("llada", {"input_emb_norm": True}, "input_emb_norm of LLaDA"),
    ("llada", {"multi_query_attention": True}, "multi_query_attention of LLaDA"),
    ("llada", {"scale_logits": True}, "scale_logits of LLaDA"),
    ("dream", {"hidden_size": "32"}, "hidden_size of Dream must be of the kind of 3584, got '32'"),
    ("dream", {"num_hidden_layers": 0}, "num_hidden_layers of Dream must be above 0, got 0"),
    ("dream", {"tie_word_embeddings": 1}, "tie_word_embeddings of Dream must be.*got 1"),
    ("dream", {"num_key_value_heads": 3}, "num_attention_heads must be a multiple of num_key"),
    (
        "llada",
        {"n_heads": 24, "n_kv_heads": None},
        "d_model must be a multiple of n_heads, got .* and 24",
    ),
    ("llada", {"mlp_hidden_size": None}, "mlp_hidden_size of LLaDA must be.*got None"),
    ("llada", {"n_layers": True}, "n_layers of LLaDA must be.*got True"),
    ("llada", {"rms_norm_eps": "1e-5"}, "rms_norm_eps of LLaDA must be of the kind of 1e-05"),
    ("llada", {"num_experts": 64}, "num_experts = 64 is not known of LLaDA"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), SETTINGS)
def test_settings_of_another_model(
    tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        (hf.dream_config if kind == "dream" else hf.llada_config)(**changes)
    with pytest.raises(ValueError, match=message):
        hf.load_diffusion(write(tmp_path, kind, **changes))


@pytest.mark.parametrize(
    ("kind", "name"), [("dream", "rope_theta"), ("dream", "mask_token_id"), ("llada", "block_type")]
)
def test_a_setting_that_is_missing(tmp_path: Path, kind: str, name: str) -> None:
    write(tmp_path, kind)
    config = {key: value for key, value in CONFIGS[kind].items() if key != name}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"must have {name}"):
        hf.load_diffusion(tmp_path)


def test_an_unknown_setting_that_is_off(tmp_path: Path, kind: str) -> None:
    hf.load_diffusion(write(tmp_path, kind, new_kind_of_attention=False, another=None))


# ---- tensors and files that do not fit ----------------------------------------------------


def test_tensors_that_do_not_fit(tmp_path: Path, kind: str) -> None:
    first, *_, head = tensors(kind)
    layer = {"dream": "model.layers.1.mlp.up_proj", "llada": "model.transformer.blocks.1.up_proj"}
    name = layer[kind] + ".weight"
    cases: list[tuple[dict[str, Tensor | None], str]] = [
        ({name: None}, f"the checkpoint lacks {name}$"),
        ({name: torch.zeros(39, 32)}, rf"{name} must be \(40, 32\).*got \(39, 32\)"),
        ({name: torch.zeros(40, 32, dtype=torch.int8)}, f"{name} must be.*got.*torch.int8"),
        ({"model.extra.weight": torch.zeros(2)}, "model.extra.weight is no tensor of this model"),
        ({first: None, head: None, name: None}, "the checkpoint lacks .*, .*, [^ ]*$"),
        (dict.fromkeys(tensors(kind)), r"the checkpoint lacks .*, .*, .* and \d+ more$"),
    ]
    for changes, message in cases:
        given = {k: x for k, x in (tensors(kind) | changes).items() if x is not None}
        with pytest.raises(ValueError, match=message):
            hf.load_diffusion(write(tmp_path, kind, given))


def test_names_of_transformers_are_not_llada_s(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lm_head\.weight is no tensor of this model"):
        hf.load_diffusion(write(tmp_path, "llada", {"lm_head.weight": torch.zeros(24, 32)}))


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    write(tmp_path, "dream")
    given = tensors("dream")
    shard(tmp_path, given)
    last = tmp_path / "model-00003-of-00003.safetensors"
    save_file({"model.norm.weight": given["model.norm.weight"]}, tmp_path / "more.safetensors")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.bias"] = "more.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"model\.norm\.weight is no tensor.*or one that came before"
    ):
        hf.load_diffusion(tmp_path)
    last.unlink()
    with pytest.raises(ValueError, match=r"00003-of-00003\.safetensors is no safetensors file"):
        hf.load_diffusion(tmp_path)


def test_files_that_are_missing_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config.json must be a file of JSON"):
        hf.load_diffusion(tmp_path)
    write(tmp_path, "dream", model_type="qwen2")
    with pytest.raises(ValueError, match='model_type must be "Dream" or "llada", got \'qwen2\''):
        hf.load_diffusion(tmp_path)
    write(tmp_path, "dream")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is no safetensors file, or a part"):
        hf.load_diffusion(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"must have model.safetensors or .*index.json$"):
        hf.load_diffusion(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="what is pickled is not read"):
        hf.load_diffusion(tmp_path)
    index = {"weight_map": {"lm_head.weight": "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"must name files beside it, got '\.\./model"):
        hf.load_diffusion(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json must hold an object, got list"):
        hf.load_diffusion(tmp_path)


def test_published_settings_are_all_known() -> None:
    """Each is needed, fixed or known to have no bearing: none passes for being off."""
    from triselect.hf import diffusion_config as of

    known = of.DREAM_7B | of.DREAM_IS
    assert set(DREAM) <= set(known) | of.DREAM_IGNORES | of.EITHER_IGNORES
    known = of.LLADA_8B | of.LLADA_IS
    assert set(LLADA) <= set(known) | of.LLADA_IGNORES | of.EITHER_IGNORES
